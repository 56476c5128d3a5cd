package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/joinapi"
)

// tokenCommand makes and ends the tokens with which machines join.
func tokenCommand(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "make, list and end the tokens with which machines join",
		Description: "  umiak token create --print-join-command\n" +
			"  umiak token create --kind server --ttl 1h --single-use --description 'second server'\n" +
			"  umiak token list\n  umiak token revoke ID\n  umiak token rotate agent",
		Subcommands: []*cli.Command{tokenCreate(where), tokenList(where), tokenRevoke(where), tokenRotate(where)},
	}
}

func tokenCreate(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:        "create",
		Usage:       "make a token and print it",
		Description: "The token is shown this once: the cluster keeps only a hash of it.",
		Flags: where.Flags(agentcli.Output(),
			&cli.StringFlag{Name: "kind", Value: string(token.Agent), Usage: "agent, or server, which lets agents join as well"},
			&cli.DurationFlag{Name: "ttl", Value: 24 * time.Hour, Usage: "how long it can be used; 0 is for ever"},
			&cli.BoolFlag{Name: "single-use", Usage: "let one machine join with it"},
			&cli.StringFlag{Name: "description", Usage: "what it is for"},
			&cli.BoolFlag{Name: "print-join-command", Usage: "print the line to run on the machine that is to join"}),
		Action: func(c *cli.Context) error {
			if err := agentcli.NoArgs(c); err != nil {
				return err
			}
			kind, err := token.ParseKind(c.String("kind"))
			if err != nil {
				return agentcli.Usagef(c, "--kind: %v", err)
			}
			ttl := c.Duration("ttl")
			if ttl < 0 {
				return agentcli.Usagef(c, "--ttl: it cannot have ended already")
			}
			js, err := agentcli.AsJSON(c)
			if err != nil {
				return err
			}
			t, _, err := tokens(c, where)
			if err != nil {
				return err
			}
			tok, rec, err := t.Create(c.Context, joinapi.Spec{Kind: kind, Description: c.String("description"), TTL: ttl, SingleUse: c.Bool("single-use")})
			if err != nil {
				return err
			}
			line := ""
			if c.Bool("print-join-command") {
				if line, err = joinLine(c.Context, t, kind, tok); err != nil {
					return err
				}
			}
			switch {
			case js:
				return agentcli.PrintJSON(c, struct {
					joinapi.Record
					Token string `json:"token"`
					Join  string `json:"joinCommand,omitempty"`
				}{rec, tok.Line(), line})
			case line != "":
				fmt.Fprintln(c.App.Writer, line)
			default:
				fmt.Fprintln(c.App.Writer, tok.Line())
			}
			return nil
		},
	}
}

// joinLine is what to run on the machine that is to join.
func joinLine(ctx context.Context, t joinapi.Tokens, kind token.Kind, tok token.Token) (string, error) {
	list, err := t.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: apiservers.Selector})
	if err != nil {
		return "", fmt.Errorf("find the servers: %w", err)
	}
	servers := apiservers.Of(list.Items)
	if len(servers) == 0 {
		return "", errors.New("find the servers: none has published its address yet, try again")
	}
	program := "umiak-agent"
	if kind == token.Server {
		program = "umiak server"
	}
	return fmt.Sprintf("%s --server https://%s --token %s", program, servers[0], tok.Line()), nil
}

func tokenList(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list tokens, without their secrets",
		Flags: where.Flags(agentcli.Output()),
		Action: agentcli.Prints(func(c *cli.Context, js bool) error {
			t, _, err := tokens(c, where)
			if err != nil {
				return err
			}
			list, err := t.List(c.Context)
			if err != nil {
				return err
			}
			if js {
				type withState struct {
					joinapi.Record
					State string `json:"state"`
				}
				out := []withState{}
				for _, r := range list {
					out = append(out, withState{r, r.State(time.Now())})
				}
				return agentcli.PrintJSON(c, out)
			}
			return printTokens(c.App.Writer, list, time.Now())
		}),
	}
}

func printTokens(w io.Writer, list []joinapi.Record, now time.Time) error {
	t := output.NewTable(w, "ID", "KIND", "STATE", "EXPIRES", "USES LEFT", "DESCRIPTION")
	for _, r := range list {
		expires, uses := "never", "any"
		if !r.Expires.IsZero() {
			expires = r.Expires.UTC().Format("2006-01-02 15:04 UTC")
		}
		if r.Renews {
			expires += ", renewed"
		}
		if r.UsesLeft != nil {
			uses = fmt.Sprint(*r.UsesLeft)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Kind, r.State(now), expires, uses, r.Description)
	}
	return t.Flush()
}

func tokenRevoke(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:        "revoke",
		Usage:       "end tokens at once; nodes that joined with them stay",
		ArgsUsage:   "ID…",
		Description: "  umiak token revoke q3tkj5xa",
		Flags:       where.Flags(),
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return agentcli.Usagef(c, "token revoke takes the ID of a token; `umiak token list` shows them")
			}
			t, dirs, err := tokens(c, where)
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range c.Args().Slice() {
				err := t.Revoke(c.Context, id)
				if file := tokenFile(dirs, id); err == nil && file != "" {
					if err = os.Remove(file); errors.Is(err, fs.ErrNotExist) {
						err = nil
					}
				}
				if errs = append(errs, err); err == nil {
					fmt.Fprintln(c.App.Writer, "revoked", id)
				}
			}
			return errors.Join(errs...)
		},
	}
}

func tokenRotate(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:        "rotate",
		Usage:       "give a token a new secret and print it; the old one is refused from now on",
		ArgsUsage:   "ID",
		Description: "Without an id it is the agents' token of the first start. Nodes that have joined stay.\n\n  umiak token rotate\n  umiak token rotate server",
		Flags:       where.Flags(),
		Action: func(c *cli.Context) error {
			if c.Args().Len() > 1 {
				return agentcli.Usagef(c, "token rotate takes one ID")
			}
			id := c.Args().First()
			if id == "" {
				id = joinapi.AgentID
			}
			t, dirs, err := tokens(c, where)
			if err != nil {
				return err
			}
			tok, rec, err := t.Rotate(c.Context, id)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, tok.Line())
			if len(rec.SetOn) > 0 {
				key := map[string]string{joinapi.ServerID: "token", joinapi.AgentID: "agent-token"}[id]
				fmt.Fprintf(c.App.ErrWriter, "these servers have the old one in their settings (%s, %s-file): %s; it is not used any more: set the new one there, or none\n", key, key, strings.Join(rec.SetOn, ", "))
			}
			if file := tokenFile(dirs, id); file != "" {
				if _, err := os.Stat(dirs.Server()); err == nil {
					if err := atomicfile.Write(file, []byte(tok.Line()+"\n"), 0o600); err != nil {
						return err
					}
				}
			}
			if id != joinapi.ServerID {
				return nil
			}
			// What is sealed with the old secret in the datastore is to be sealed with the new one.
			if !instance.Running(dirs) {
				fmt.Fprintln(c.App.ErrWriter, "this is no server: restart one with the new token as its token, so that the keys in the datastore can be opened with it")
				return nil
			}
			return control.Call(c.Context, dirs.ControlSocket(), server.ActionSeal, struct{}{}, &struct{}{})
		},
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// tokenFile is where a server keeps a token of the first start.
func tokenFile(d layout.Dirs, id string) string {
	switch id {
	case joinapi.ServerID:
		return d.ServerToken()
	case joinapi.AgentID:
		return d.AgentToken()
	}
	return ""
}

// tokens are those of the cluster.
func tokens(c *cli.Context, where agentcli.Where) (joinapi.Tokens, layout.Dirs, error) {
	rc, dirs, err := admin(c, where, "umiak-token")
	if err != nil {
		return joinapi.Tokens{}, dirs, err
	}
	if err := rest.LoadTLSFiles(rc); err != nil {
		return joinapi.Tokens{}, dirs, fmt.Errorf("read the CA of %s: %w", rc.Host, err)
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return joinapi.Tokens{}, dirs, fmt.Errorf("make client: %w", err)
	}
	ca, former, err := joinapi.CAHash(rc.CAData)
	t := joinapi.Tokens{Client: client, CA: ca, Former: former}
	if key := filepath.Join(dirs.ServerPKI(), "service-account.key"); exists(key) { // on a server
		t.Secret = func() ([]byte, error) { return os.ReadFile(key) }
	}
	return t, dirs, err
}
