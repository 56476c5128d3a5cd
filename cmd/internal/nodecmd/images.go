package nodecmd

import (
	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/socket"
)

// Images is `umiak images`.
func Images(w Where) *ucli.Command {
	// onNode runs f with the socket of the node's containerd. f asks whether anybody listens there: containerd's
	// client would wait, and then say nothing that helps.
	onNode := func(f func(c *ucli.Context, containerd string) error) ucli.ActionFunc {
		return func(c *ucli.Context) error {
			containerd, err := w.Containerd(c)
			if err != nil {
				return err
			}
			return f(c, containerd)
		}
	}
	return &ucli.Command{
		Name:  "images",
		Usage: "container images without a registry",
		Subcommands: []*ucli.Command{
			{
				Name: "import", Usage: "import image archives", ArgsUsage: "FILE...  (- is the standard input)",
				Description: "Archives are those of `docker save`, OCI layouts, or `umiak images export`, also compressed (.gz, .zst, .bz2).\n" +
					"Archives that lie in DATA-DIR/agent/images are imported by themselves.\n\n  umiak images import app.tar.zst",
				Flags: w.Flags(&ucli.BoolFlag{Name: "all-platforms",
					Usage: "keep what is for other machines too, so that it can be exported again"}),
				Action: onNode(func(c *ucli.Context, containerd string) error {
					if !c.Args().Present() {
						return Usagef(c, "images import takes an archive, as FILE")
					}
					if err := socket.Probe(c.Context, containerd); err != nil {
						return err
					}
					return images.Import(c.Context, containerd, c.Args().Slice(),
						images.ImportOptions{AllPlatforms: c.Bool("all-platforms")}, c.App.ErrWriter)
				}),
			},
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the node's images",
				Description: "  umiak images list\n  umiak images list -o json",
				Flags:       w.Flags(Output()),
				Action: onNode(func(c *ucli.Context, containerd string) error {
					if err := NoArgs(c); err != nil {
						return err
					}
					if _, err := AsJSON(c); err != nil {
						return err
					}
					if err := socket.Probe(c.Context, containerd); err != nil {
						return err
					}
					return images.List(c.Context, containerd, c.String("output"), c.App.Writer)
				}),
			},
			{
				Name: "export", Usage: "write images into an archive", ArgsUsage: "IMAGE...",
				Description: "  umiak images export --file app.tar.zst registry.example/app:1",
				Flags: w.Flags(&ucli.StringFlag{Name: "file", Aliases: []string{"f"},
					Usage:    "archive to write, compressed if it ends in .gz or .zst; - is the standard output",
					Required: true}),
				Action: onNode(func(c *ucli.Context, containerd string) error {
					if !c.Args().Present() {
						return Usagef(c, "images export takes an IMAGE; `umiak images list` shows them")
					}
					if err := socket.Probe(c.Context, containerd); err != nil {
						return err
					}
					return images.Export(c.Context, containerd, c.Args().Slice(), c.String("file"), c.App.Writer)
				}),
			},
		},
	}
}
