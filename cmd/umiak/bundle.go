package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent/bundle"
	"github.com/umiak-io/umiak/agent/worker"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/server/withnode"
)

// bundleCreate is `umiak bundle create`.
func bundleCreate(w agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "pack programs, images, manifests and settings",
		Description: "What comes out is installed by the install.sh in it, or by `umiak upgrade --from`, without network.\n\n" +
			"  umiak bundle create --out /media/stick/bundle.tar --image registry.example/app:1 --manifest app.yaml\n" +
			"  umiak bundle create --out bundle.tar --release /srv/umiak/v1.37.3+umiak1 --arch amd64,arm64 --images saved.tar",
		Flags: w.Flags(agentcli.Output(),
			&cli.StringFlag{Name: "out", Usage: "the file to write", Required: true},
			&cli.StringFlag{Name: "release",
				Usage: "folder, archive or URL of a release (default: where this node's came from)"},
			&cli.StringFlag{Name: "key",
				Usage: "public key of releases (default: the one that this node was installed with)"},
			&cli.StringSliceFlag{Name: "arch", Usage: "what machines it is for: amd64, arm64, arm, riscv64",
				Value: cli.NewStringSlice(runtime.GOARCH)},
			&cli.BoolFlag{Name: "no-programs", Usage: "leave the programs out: it is for nodes that have this version"},
			&cli.StringSliceFlag{Name: "image", Usage: "an image of this node's store"},
			&cli.StringSliceFlag{Name: "images", Usage: "an archive of images, as `umiak images import` takes it"},
			&cli.BoolFlag{Name: "all-platforms", Usage: "keep what images have for other machines than --arch, too"},
			&cli.StringSliceFlag{Name: "manifest", Usage: "a file or folder that servers apply"},
			&cli.StringFlag{Name: "server-config", Usage: "a file of settings for servers"},
			&cli.StringFlag{Name: "agent-config", Usage: "a file of settings for agents"},
			&cli.BoolFlag{Name: "dry-run",
				Usage: "check what can be checked, say what would be packed, and write nothing"}),
		Action: agentcli.Prints(func(c *cli.Context, js bool) error {
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			// Of containerd's library, which would warn of a file system without fsverity.
			if err := log.SetLevel("error"); err != nil {
				return err
			}
			var wrong []error
			if file := c.String("server-config"); file != "" {
				wrong = append(wrong, withnode.CheckFile(file))
			}
			if file := c.String("agent-config"); file != "" {
				wrong = append(wrong, worker.CheckFile(file))
			}
			if err := errors.Join(wrong...); err != nil {
				return agentcli.BadConfig(err)
			}
			made, err := bundle.Create(c.Context, bundle.Config{Out: c.String("out"),
				Release: c.String("release"), Key: c.String("key"),
				Etc: agentcli.Etc(), Arches: c.StringSlice("arch"), Programs: !c.Bool("no-programs"),
				Images: c.StringSlice("image"), Archives: c.StringSlice("images"),
				AllPlatforms: c.Bool("all-platforms"), Socket: dirs.ContainerdSocket(),
				Manifests: c.StringSlice("manifest"), ServerConfig: c.String("server-config"),
				AgentConfig: c.String("agent-config"),
				DryRun:      c.Bool("dry-run"), Progress: c.App.ErrWriter})
			if err != nil {
				return fmt.Errorf("create bundle: %w", err)
			}
			if js {
				return agentcli.PrintJSON(c, made)
			}
			agentcli.PrintBundle(c, made.Contents)
			if !c.Bool("dry-run") {
				fmt.Fprintf(c.App.Writer, "%s: %.1f MB\n", made.File, float64(made.Size)/1e6)
			}
			return nil
		}),
	}
}
