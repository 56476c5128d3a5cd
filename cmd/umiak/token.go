package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/localadmin"
)

// tokenCommand makes and ends the tokens with which machines join.
func tokenCommand(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "make, list and end the tokens with which machines join",
		Description: "  umiak token create --print-join-command\n" +
			"  umiak token create --kind server --ttl 1h --single-use --description 'second server'\n" +
			"  umiak token list\n  umiak token revoke ID\n  umiak token rotate agent",
		Subcommands: []*cli.Command{tokenCreate(where), tokenGenerate(), tokenList(where), tokenRevoke(where),
			tokenRotate(where)},
	}
}

func tokenCreate(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "make a token and print it",
		Description: "The token is shown this once: the cluster keeps only a hash of it.\n\n" +
			"  umiak token create --print-join-command\n  umiak token create --kind server --ttl 1h --single-use",
		Flags: where.Flags(agentcli.Output(),
			&cli.StringFlag{Name: "kind", Value: string(token.Agent),
				Usage: "agent, or server, which lets agents join as well"},
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
			t, err := tokens(c, where)
			if err != nil {
				return err
			}
			tok, rec, err := t.Create(c.Context, joinapi.Spec{Kind: kind,
				Description: c.String("description"), TTL: ttl, SingleUse: c.Bool("single-use")})
			if err != nil {
				return err
			}
			line := ""
			if c.Bool("print-join-command") {
				if line, err = t.JoinCommand(c.Context, kind, tok); err != nil {
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

// tokenGenerate does what `k3s token generate` does: it asks no server.
func tokenGenerate() *cli.Command {
	return &cli.Command{
		Name:  "generate",
		Usage: "print a random secret for the settings token and agent-token; no cluster is asked",
		Description: "The first server takes it as the token of its cluster. To let a machine join a cluster that runs, use\n" +
			"`umiak token create`.\n\n  umiak token generate > /etc/umiak/token",
		Action: func(c *cli.Context) error {
			if err := agentcli.NoArgs(c); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, token.New("", "").Secret)
			return nil
		},
	}
}

func tokenList(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list tokens, without their secrets",
		Description: "  umiak token list\n  umiak token list -o json",
		Flags:       where.Flags(agentcli.Output()),
		Action: agentcli.Prints(func(c *cli.Context, js bool) error {
			t, err := tokens(c, where)
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
		Aliases:     []string{"delete"}, // as in k3s
		Usage:       "end tokens at once; nodes that joined with them stay",
		ArgsUsage:   "ID...",
		Description: "  umiak token revoke q3tkj5xa",
		Flags:       where.Flags(),
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return agentcli.Usagef(c, "token revoke takes the ID of a token; `umiak token list` shows them")
			}
			t, err := tokens(c, where)
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range c.Args().Slice() {
				err := t.Revoke(c.Context, id)
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
		ArgsUsage:   "[ID]",
		Description: "Without an id it is the agents' token of the first start. Nodes that have joined stay.\n\n  umiak token rotate\n  umiak token rotate server",
		Flags:       where.Flags(),
		Action: func(c *cli.Context) error {
			id := c.Args().First()
			if id == "" {
				id = joinapi.AgentID
			}
			t, err := tokens(c, where)
			if err != nil {
				return err
			}
			tok, remarks, err := t.Rotate(c.Context, id)
			if tok.Secret != "" {
				fmt.Fprintln(c.App.Writer, tok.Line())
			}
			for _, r := range remarks {
				fmt.Fprintln(c.App.ErrWriter, r)
			}
			return err
		},
	}
}

// tokens opens those of the cluster.
func tokens(c *cli.Context, where agentcli.Where) (localadmin.Tokens, error) {
	rc, dirs, err := admin(c, where, "umiak-token")
	if err != nil {
		return localadmin.Tokens{}, err
	}
	return localadmin.OpenTokens(rc, dirs)
}
