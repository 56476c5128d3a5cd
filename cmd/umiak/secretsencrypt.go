package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/localadmin"
)

// secretsEncryptCommand is `umiak secrets-encrypt`. cipher returns the setting secrets-encryption-provider.
func secretsEncryptCommand(w agentcli.Where, cipher func() string) *cli.Command {
	return &cli.Command{
		Name:  "secrets-encrypt",
		Usage: "the keys with which Secrets and ConfigMaps are encrypted in the datastore",
		Subcommands: append([]*cli.Command{
			{
				Name:        "status",
				Usage:       "show which keys are in use, and what is stored with which",
				Description: "Exits with 1 when a rotation is under way.\n\n  umiak secrets-encrypt status\n  umiak secrets-encrypt status -o json",
				Flags:       w.Flags(agentcli.Output()),
				Action: agentcli.Prints(func(c *cli.Context, js bool) error {
					dirs, err := onServer(c, &w)
					if err != nil {
						return err
					}
					s, err := localadmin.SecretsStatus(c.Context, dirs)
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
				Name:    "rotate",
				Aliases: []string{"rotate-keys"}, // as in k3s
				Usage:   "make a new key, rewrite everything with it, and drop the old one",
				Description: "The server does it while it runs; this command shows the progress, and ending it ends nothing else: the same\n" +
					"command shows a rotation that is under way, on any server. A server that was restarted continues.\n" +
					"All servers get the new key before any writes with it.\n" +
					"Types: " + strings.Join(encryption.Ciphers, ", ") +
					"; the default is secrets-encryption-provider, or else that of the present key.\n\n" +
					"  umiak secrets-encrypt rotate\n  umiak secrets-encrypt rotate --key-type aesgcm",
				Flags: w.Flags(agentcli.Output(), &cli.StringFlag{Name: "key-type",
					Usage: strings.Join(encryption.Ciphers, ", ")}),
				Action: agentcli.Prints(func(c *cli.Context, js bool) error {
					dirs, err := onServer(c, &w)
					if err != nil {
						return err
					}
					show := func(line string) { fmt.Fprintln(c.App.ErrWriter, line) }
					// The settings have been read with the directories.
					r := encryption.BeginRequest{Cipher: c.String("key-type"), Default: cipher()}
					if err := localadmin.RotateSecrets(c.Context, dirs, r, show); err != nil {
						return err
					}
					if !js {
						return nil
					}
					s, err := localadmin.SecretsStatus(c.Context, dirs)
					if err != nil {
						return err
					}
					return agentcli.PrintJSON(c, s)
				}),
			},
		}, k3sEncryptCommands()...),
	}
}

// k3sEncryptCommands are the commands of k3s whose work Umiak does otherwise: each prints what to do.
func k3sEncryptCommands() []*cli.Command {
	command := func(name string, done bool, text string) *cli.Command {
		return &cli.Command{Name: name, Hidden: true, Usage: "for scripts that were written for k3s: " + text,
			Action: func(c *cli.Context) error {
				if err := agentcli.NoArgs(c); err != nil {
					return err
				}
				if !done {
					return errors.New(text)
				}
				fmt.Fprintln(c.App.Writer, text)
				return nil
			}}
	}
	const oneStep = "a rotation is one command, `umiak secrets-encrypt rotate`: it prepares, rotates and encrypts everything again"
	return []*cli.Command{
		command("enable", true, "Secrets are always encrypted; there is nothing to enable"),
		command("disable", false, "the encryption of Secrets cannot be disabled"),
		command("prepare", false, oneStep),
		command("reencrypt", false, oneStep),
	}
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
		fmt.Fprintf(t, "next\tthe running server goes on with it; umiak secrets-encrypt rotate shows its progress\n")
	}
	return t.Flush()
}
