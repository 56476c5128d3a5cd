package nodecmd

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/config"
)

// exitUsage is the exit code for a command line or settings that cannot be used. Nothing was done then.
const exitUsage = 2

// usageError is an error of a command line or of settings.
type usageError struct{ error }

func (usageError) ExitCode() int   { return exitUsage }
func (e usageError) Unwrap() error { return e.error }

// Usagef returns an error for a command line that c does not take. The message ends with the command that explains it.
func Usagef(c *ucli.Context, format string, a ...any) error {
	text := fmt.Sprintf(format, a...)
	if !strings.HasSuffix(text, "?") {
		text += ";"
	}
	return usageError{fmt.Errorf("%s see %s --help", text, helpName(c))}
}

func helpName(c *ucli.Context) string {
	if c.Command != nil && c.Command.HelpName != "" {
		return c.Command.HelpName
	}
	return c.App.Name
}

// Strict makes all commands of a program answer a wrong command line in one line on stderr, with the nearest name and
// exit code 2, and makes completion offer what is accepted. It adds `help` and `version`.
func Strict(app *ucli.App) {
	app.HideHelpCommand = true
	app.OnUsageError = onUsageError
	app.Flags = append(app.Flags, ucli.HelpFlag) // the library adds it only with a help command of its own
	app.Commands = append(app.Commands, helpCommand(), versionCommand())
	run := app.Action
	app.Action = func(c *ucli.Context) error {
		switch {
		case c.Args().Present():
			return unknownCommand(c)
		case run != nil:
			return run(c)
		}
		return ucli.ShowAppHelp(c)
	}
	app.BashComplete = complete
	for _, c := range app.Commands {
		c.Category = topics[c.Name]
		strict(app.Name, c)
	}
}

// topics are the headings under which a program's help lists its commands.
var topics = map[string]string{
	"server": "Run a cluster", "agent": "Run a cluster",
	"status": "Look at it", "check": "Look at it", "config": "Look at it", "debug": "Look at it", "directories": "Look at it",
	"token": "Look after the cluster", "snapshot": "Look after the cluster", "certificate": "Look after the cluster",
	"secrets-encrypt": "Look after the cluster",
	"images":          "Look after this machine", "bundle": "Look after this machine",
	"upgrade": "Look after this machine",
	"cleanup": "Look after this machine", "uninstall": "Look after this machine",
	"kubectl": "Programs of others", "crictl": "Programs of others", "ctr": "Programs of others",
	"completion": "About this program", "help": "About this program", "version": "About this program",
}

// withoutCategory returns a template of help without the heading under which the program lists the command.
func withoutCategory(template string) string {
	return strings.Replace(template, "{{if .Category}}\n\nCATEGORY:\n   {{.Category}}{{end}}", "", 1)
}

// examplesOf returns a description whose examples are command lines of the program.
func examplesOf(program, description string) string {
	lines := strings.Split(description, "\n")
	for i, line := range lines {
		if rest, ok := strings.CutPrefix(line, "  umiak "); ok {
			lines[i] = "  " + program + " " + rest
		}
	}
	return strings.Join(lines, "\n")
}

// maxArguments returns how many arguments a command takes, by the text of its usage; -1 means any number.
func maxArguments(usage string) int {
	usage, _, _ = strings.Cut(usage, "  ") // a remark follows
	if strings.Contains(usage, "...") {
		return -1
	}
	return len(strings.Fields(usage))
}

// strict is Strict for one command and those below it.
func strict(program string, cmd *ucli.Command) {
	cmd.Description = examplesOf(program, cmd.Description)
	cmd.CustomHelpTemplate = withoutCategory(ucli.CommandHelpTemplate)
	if len(cmd.Subcommands) > 0 {
		cmd.CustomHelpTemplate = withoutCategory(ucli.SubcommandHelpTemplate)
	}
	cmd.HideHelpCommand = true
	cmd.OnUsageError = onUsageError
	if cmd.BashComplete == nil {
		cmd.BashComplete = complete
	}
	group := len(cmd.Subcommands) > 0
	if group && cmd.Action == nil {
		cmd.Action = ucli.ShowSubcommandHelp
	}
	required, most := takeRequired(cmd), maxArguments(cmd.ArgsUsage)
	before := cmd.Before
	cmd.Before = func(c *ucli.Context) error {
		if c.Args().Present() && !cmd.SkipFlagParsing {
			for _, arg := range c.Args().Slice() {
				if !group && cmd.ArgsUsage != "" && len(arg) > 1 && arg[0] == '-' {
					return Usagef(c, "%s has to stand before %q", arg, c.Args().First())
				}
			}
			switch n := c.Args().First(); {
			case group && n != "help" && cmd.Command(n) == nil:
				return unknownCommand(c)
			case !group && most >= 0 && c.NArg() > most:
				return Usagef(c, "%s takes no argument %q", helpName(c), c.Args().Get(most))
			}
		}
		for _, name := range required {
			if !c.IsSet(name) {
				return Usagef(c, "--%s is needed", name)
			}
		}
		if before != nil {
			return before(c)
		}
		return nil
	}
	for _, sub := range cmd.Subcommands {
		strict(program, sub)
	}
}

// takeRequired has the command's own check stand in for the library's, which prints the whole help.
func takeRequired(cmd *ucli.Command) (names []string) {
	for _, f := range cmd.Flags {
		if s, ok := f.(*ucli.StringFlag); ok && s.Required {
			s.Required = false
			names = append(names, s.Name)
		}
	}
	return names
}

// The errors of the flag library and of package flag below it.
var (
	undefined = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	noValue   = regexp.MustCompile(`^flag needs an argument: -(.*)$`)
	badValue  = regexp.MustCompile(`(?s)^invalid (?:boolean )?value (".*") for (?:flag )?-([^ :]+): (.*)$`)
	badSyntax = regexp.MustCompile(`^bad flag syntax: (.*)$`)
	twoForms  = regexp.MustCompile(`^Cannot use two forms of the same flag: (\S+) (\S+)$`)
)

func onUsageError(c *ucli.Context, err error, _ bool) error {
	text := err.Error()
	switch m := undefined.FindStringSubmatch(text); {
	case m != nil && belongsBelow(c.Command, m[1]):
		return Usagef(c, "%s belongs behind the command, as `%s COMMAND %s …`", dashed(m[1]), helpName(c), dashed(m[1]))
	case m != nil:
		if near := config.Nearest(m[1], flagNames(c.Command)); near != "" {
			return Usagef(c, "unknown flag %s; did you mean %s?", dashed(m[1]), dashed(near))
		}
		return Usagef(c, "unknown flag %s", dashed(m[1]))
	case noValue.MatchString(text):
		return Usagef(c, "%s needs a value", dashed(noValue.FindStringSubmatch(text)[1]))
	case badValue.MatchString(text):
		m := badValue.FindStringSubmatch(text)
		if m[3] == "parse error" {
			m[3] = m[1] + " is not a value for it"
		}
		return Usagef(c, "%s: %s", dashed(m[2]), m[3])
	case badSyntax.MatchString(text):
		return Usagef(c, "%q is not a flag", badSyntax.FindStringSubmatch(text)[1])
	case twoForms.MatchString(text):
		m := twoForms.FindStringSubmatch(text)
		return Usagef(c, "%s and %s are the same flag", dashed(m[1]), dashed(m[2]))
	}
	return Usagef(c, "%s", text)
}

// belongsBelow reports whether a command below cmd takes a flag.
func belongsBelow(cmd *ucli.Command, flag string) bool {
	return cmd != nil && slices.ContainsFunc(cmd.Subcommands,
		func(sub *ucli.Command) bool { return slices.Contains(flagNames(sub), flag) })
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// flagNames are the flags that help shows.
func flagNames(cmd *ucli.Command) []string {
	var out []string
	for _, f := range cmd.Flags {
		if v, ok := f.(ucli.VisibleFlag); ok && v.IsVisible() {
			out = append(out, f.Names()...)
		}
	}
	return out
}

// commandNames are the commands below one that help shows.
func commandNames(cmd *ucli.Command) []string {
	var out []string
	for _, sub := range cmd.Subcommands {
		if !sub.Hidden {
			out = append(out, sub.Name)
		}
	}
	return out
}

func unknownCommand(c *ucli.Context) error {
	name := c.Args().First()
	if near := config.Nearest(name, commandNames(c.Command)); near != "" {
		return Usagef(c, "unknown command %q; did you mean %s?", name, near)
	}
	return Usagef(c, "unknown command %q", name)
}

// argvKey is where Run keeps the command line in the program's metadata: the library loses the word that is to be
// completed.
const argvKey = "argv"

// Run runs a program with a command line and returns its exit code.
func Run(ctx context.Context, app *ucli.App, argv []string, stderr io.Writer) int {
	Strict(app)
	app.Metadata = map[string]any{argvKey: argv}
	s := newScreen(app)
	for _, c := range app.Commands {
		s.interrupt(c)
	}
	err := app.RunContext(ctx, argv)
	if err == nil {
		err = s.failed()
	}
	return Exit(app.Name, err, stderr)
}

// complete prints what may come next: commands, or flags where the last word begins with a dash.
func complete(c *ucli.Context) {
	if c.Args().Present() {
		return // an argument of the command, or a command that does not exist
	}
	word := ""
	if argv, ok := c.App.Metadata[argvKey].([]string); ok && len(argv) > 2 {
		word = argv[len(argv)-2]
	}
	if !strings.HasPrefix(word, "-") {
		for _, name := range commandNames(c.Command) {
			fmt.Fprintln(c.App.Writer, name)
		}
		return
	}
	var flags []string
	for _, name := range flagNames(c.Command) {
		switch flag := dashed(name); {
		case flag == word:
			return // it is complete; what follows is its value
		case strings.HasPrefix(flag, word):
			flags = append(flags, flag)
		}
	}
	for _, flag := range flags {
		fmt.Fprintln(c.App.Writer, flag)
	}
}

// helpCommand is `umiak help [COMMAND...]`.
func helpCommand() *ucli.Command {
	return &ucli.Command{
		Name:        "help",
		Usage:       "show what a command does and its flags",
		ArgsUsage:   "[COMMAND...]",
		Description: "  umiak help token create",
		Action: func(c *ucli.Context) error {
			if !c.Args().Present() {
				return ucli.ShowAppHelp(c)
			}
			path, commands := []string{c.App.Name}, c.App.Commands
			for _, name := range c.Args().Slice() {
				i := slices.IndexFunc(commands, func(cmd *ucli.Command) bool { return cmd.HasName(name) })
				if i < 0 {
					at := strings.Join(path, " ")
					return usageError{fmt.Errorf("unknown command %q of %s; see %s --help", name, at, at)}
				}
				path, commands = append(path, commands[i].Name), commands[i].Subcommands
			}
			return c.App.RunContext(c.Context, append(path, "--help"))
		},
	}
}

// versionCommand is `umiak version`.
func versionCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			ucli.ShowVersion(c)
			return nil
		},
	}
}
