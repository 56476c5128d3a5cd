package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/tools/clientcmd"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/encryption"
)

// secretsEncryptCommand is `umiak secrets-encrypt`. cipher returns the setting secrets-encryption-provider.
func secretsEncryptCommand(w agentcli.Where, cipher func() string) *cli.Command {
	return &cli.Command{
		Name:  "secrets-encrypt",
		Usage: "the keys with which Secrets and ConfigMaps are encrypted in the datastore",
		Subcommands: []*cli.Command{
			{
				Name:        "status",
				Usage:       "show which keys are in use, and what is stored with which",
				Description: "Exits with 1 when a rotation is under way.\n\n  umiak secrets-encrypt status\n  umiak secrets-encrypt status -o json",
				Flags:       w.Flags(agentcli.Output()),
				Action: agentcli.Prints(func(c *cli.Context, js bool) error {
					k, _, err := keeper(c, &w)
					if err != nil {
						return err
					}
					s, err := k.Status(c.Context)
					if err != nil {
						return err
					}
					if js {
						err = agentcli.PrintJSON(c, s)
					} else {
						err = printEncryption(c, s)
					}
					if err == nil && s.Phase != encryption.PhaseNone {
						return cli.Exit("", 1)
					}
					return err
				}),
			},
			{
				Name:  "rotate",
				Usage: "make a new key, write everything anew with it, and drop the old one",
				Description: "Nothing is restarted. May be stopped at any moment, also by a power cut: run it again and it goes on, on any\n" +
					"server. Of several servers all have to serve: each gets the new key before any writes with it.\n" +
					"Types: " + strings.Join(encryption.Ciphers, ", ") +
					"; the default is secrets-encryption-provider, or else that of the present key.\n\n" +
					"  umiak secrets-encrypt rotate\n  umiak secrets-encrypt rotate --key-type aesgcm",
				Flags: w.Flags(agentcli.Output(), &cli.StringFlag{Name: "key-type",
					Usage: strings.Join(encryption.Ciphers, ", ")}),
				Action: agentcli.Prints(func(c *cli.Context, js bool) error {
					k, dirs, err := keeper(c, &w)
					if err != nil {
						return err
					}
					if !instance.Running(dirs) {
						return errors.New("umiak is not running: the API server has to write everything anew; start it, then this again")
					}
					k.Cipher = cipher() // the settings have been read with keeper
					if err := k.Rotate(c.Context, c.String("key-type")); err != nil {
						return err
					}
					if !js {
						return nil
					}
					s, err := k.Status(c.Context)
					if err != nil {
						return err
					}
					return agentcli.PrintJSON(c, s)
				}),
			},
		},
	}
}

// keeper is what looks after the keys of the server on this machine.
func keeper(c *cli.Context, w *agentcli.Where) (*encryption.Keeper, layout.Dirs, error) {
	dirs, err := onServer(c, w)
	if err != nil {
		return nil, dirs, err
	}
	k := &encryption.Keeper{
		File: dirs.EncryptionConfig(),
		Count: func(ctx context.Context, resources []string) (encryption.Counts, error) {
			var out encryption.Counts
			err := control.Call(ctx, dirs.ControlSocket(), server.ActionStored,
				server.StoredRequest{Resources: resources}, &out)
			return out, err
		},
		Share: func(ctx context.Context, raw []byte) error {
			return control.Call(ctx, dirs.ControlSocket(), server.ActionShare, server.ShareRequest{Config: raw},
				&struct{}{})
		},
		Progress: func(format string, a ...any) { fmt.Fprintf(c.App.ErrWriter, format+"\n", a...) },
	}
	if instance.Running(dirs) {
		if k.REST, err = clientcmd.BuildConfigFromFlags("", dirs.AdminKubeconfig()); err != nil {
			return nil, dirs, fmt.Errorf("read the administrator's kubeconfig: %w", err)
		}
	}
	return k, dirs, nil
}

func printEncryption(c *cli.Context, s *encryption.Status) error {
	t := output.NewTable(c.App.Writer)
	fmt.Fprintf(t, "written with\t%s\n", s.Write)
	var read []string
	for _, k := range s.Read {
		read = append(read, k.String())
	}
	fmt.Fprintf(t, "can be read\t%s\n", strings.Join(read, ", "))
	fmt.Fprintf(t, "rotation\t%s\n", s.Phase)
	if s.Loaded != nil {
		state := "these keys"
		if !*s.Loaded {
			state = "other keys: " + strings.Join(s.Behind, ", ") + " has not read the file yet, or cannot"
		}
		fmt.Fprintf(t, "API server uses\t%s\n", state)
	}
	for _, r := range slices.Sorted(maps.Keys(s.Stored)) {
		for _, k := range slices.Sorted(maps.Keys(s.Stored[r])) {
			fmt.Fprintf(t, "%s\t%d with %s\n", r, s.Stored[r][k], k)
		}
	}
	if s.Remark != "" {
		fmt.Fprintf(t, "not known\t%s\n", s.Remark)
	}
	if s.Phase != encryption.PhaseNone {
		fmt.Fprintf(t, "next\tumiak secrets-encrypt rotate goes on with it\n")
	}
	return t.Flush()
}
