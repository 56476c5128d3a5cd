// Package clitest checks that all commands of a program have help with examples, and answer wrong command lines in the
// same way.
package clitest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Program is a program under test.
type Program struct {
	Name string
	// App returns a new instance of the program's commands, as they are when the program runs.
	App func() *cli.App
	// Run runs a command line, with the program's name first, and returns the exit code.
	Run func(argv []string, stdout, stderr *bytes.Buffer) int
}

// usage is the exit code for a wrong command line.
const usage = 2

func (p Program) run(argv ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = p.Run(append([]string{p.Name}, argv...), &out, &errs)
	return code, out.String(), errs.String()
}

func visible(f cli.Flag) bool {
	v, ok := f.(cli.VisibleFlag)
	return ok && v.IsVisible()
}

// maxArguments returns how many arguments a command takes, by the text of its usage; -1 means any number.
func maxArguments(usage string) int {
	usage, _, _ = strings.Cut(usage, "  ") // a remark follows
	if strings.Contains(usage, "...") {
		return -1
	}
	return len(strings.Fields(usage))
}

// described checks that a command and its flags have a line of usage, and that a command with flags of its own or
// arguments has an example.
func described(t *testing.T, line string, c *cli.Command) {
	t.Helper()
	if c.Usage == "" || strings.HasSuffix(c.Usage, ".") {
		t.Errorf("%s: its usage has to be a line without a period at the end: %q", line, c.Usage)
	}
	specific := c.ArgsUsage != "" || c.SkipFlagParsing
	for _, f := range c.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok || !visible(f) {
			continue
		}
		if doc.GetUsage() == "" {
			t.Errorf("%s: --%s has no usage", line, f.Names()[0])
		}
		switch f.Names()[0] {
		case "data-dir", "run-dir", "help":
		default:
			specific = true
		}
	}
	if len(c.Subcommands) == 0 && specific && !c.Hidden &&
		!strings.Contains("\n"+c.Description+"\n", "\n  "+line+" ") &&
		!strings.Contains("\n"+c.Description+"\n", "\n  "+line+"\n") {
		t.Errorf("%s has no example in its description: a line of two spaces and %q", line, line)
	}
}

// Check runs every command of the program with unknown flags, commands and arguments, and with help and completion.
func Check(t *testing.T, p Program) {
	t.Helper()
	refuse := func(want string, argv ...string) {
		t.Helper()
		code, stdout, stderr := p.run(argv...)
		if code != usage || stdout != "" || strings.Count(stderr, "\n") != 1 ||
			!strings.HasPrefix(stderr, p.Name+": ") || !strings.Contains(stderr, want) ||
			!strings.Contains(stderr, " see "+p.Name) {
			t.Errorf("%s %s: want exit %d and one line with %q, got %d\nstdout: %.300s\nstderr: %.600s", p.Name,
				strings.Join(argv, " "), usage, want, code, stdout, stderr)
		}
	}
	n := 0
	var walk func(path []string, c *cli.Command)
	walk = func(path []string, c *cli.Command) {
		described(t, p.Name+" "+strings.Join(path, " "), c)
		if c.SkipFlagParsing {
			return // the command passes its arguments to another program
		}
		n++
		with := func(more ...string) []string { return append(path[:len(path):len(path)], more...) }
		refuse("unknown flag --no-such-thing", with("--no-such-thing")...)
		refuse("unknown flag -Z", with("-Z")...)
		refuse("is not a flag", with("---x")...)
		switch {
		case len(c.Subcommands) > 0:
			refuse(`unknown command "no-such-thing"`, with("no-such-thing")...)
			first := c.Subcommands[0].Name
			refuse("did you mean "+first+"?", with(first+"x")...)
		case maxArguments(c.ArgsUsage) >= 0:
			args := slices.Repeat([]string{"x"}, maxArguments(c.ArgsUsage))
			refuse(`takes no argument "extra"`, with(append(args, "extra")...)...)
		}
		for _, f := range c.Flags {
			doc, ok := f.(cli.DocGenerationFlag)
			name := "--" + f.Names()[0]
			switch {
			case !ok || len(f.Names()[0]) < 4 || !visible(f):
			case doc.TakesValue():
				refuse(name+" needs a value", with(name)...)
				refuse("unknown flag "+name+"x; did you mean "+name+"?", with(name+"x", "y")...)
			default:
				refuse(name+": ", with(name+"=perhaps")...)
			}
		}
		if code, stdout, stderr := p.run(with("--help")...); code != 0 || stderr != "" ||
			!strings.Contains(stdout, "USAGE") {
			t.Errorf("%s --help: %d %.200s %s", strings.Join(path, " "), code, stdout, stderr)
		}
		_, offered, _ := p.run(with("--generate-bash-completion")...)
		for word := range strings.FieldsSeq(offered) {
			if len(c.Subcommands) == 0 {
				continue // an argument, for which the command has a test
			}
			if code, _, stderr := p.run(with(word, "--help")...); code != 0 && !slices.Contains([]string{"kubectl", "crictl", "ctr"}, word) {
				t.Errorf("completion offers %s %s, which is refused: %s", strings.Join(path, " "), word, stderr)
			}
		}
		_, offered, _ = p.run(with("--", "--generate-bash-completion")...)
		for word := range strings.FieldsSeq(offered) {
			if _, _, stderr := p.run(with(word, "--no-such-thing")...); strings.Contains(stderr, "unknown flag "+word) {
				t.Errorf("completion offers %s %s, which is unknown: %s", strings.Join(path, " "), word, stderr)
			}
		}
		for _, sub := range c.Subcommands {
			walk(with(sub.Name), sub)
		}
	}
	app := p.App()
	_, help, _ := p.run("--help")
	for _, c := range app.Commands {
		if !c.Hidden && !strings.Contains(help, "\n     "+c.Name) {
			t.Errorf("the help of %s lists %s under no topic; see topics in cmd/internal/nodecmd", p.Name, c.Name)
		}
		walk([]string{c.Name}, c)
	}
	if n < 5 {
		t.Errorf("only %d commands were checked", n)
	}
	refuse(`unknown command "no-such-thing"`, "no-such-thing")
	refuse(`unknown command "statsu"; did you mean status?`, "statsu")
	refuse("unknown flag --no-such-thing", "--no-such-thing")
	refuse(`unknown command "no-such-thing"`, "help", "no-such-thing")
	refuse(`unknown command "no-such-thing" of `+p.Name+" bundle", "help", "bundle", "no-such-thing")
	for _, argv := range [][]string{{"help"}, {"--help"}, {"help", "status"}, {"help", "bundle", "verify"},
		{"bundle", "help"}, {"bundle"}} {
		if code, stdout, stderr := p.run(argv...); code != 0 || stderr != "" || !strings.Contains(stdout, "USAGE") {
			t.Errorf("%v: %d %.200s %s", argv, code, stdout, stderr)
		}
	}
	_, dashed, _ := p.run("--version")
	if code, stdout, _ := p.run("version"); code != 0 || stdout != dashed ||
		!strings.HasPrefix(stdout, p.Name+" version ") {
		t.Errorf("version: %d %q, --version: %q", code, stdout, dashed)
	}
	_, offered, _ := p.run("--generate-bash-completion")
	if !strings.Contains(offered, "help\n") || !strings.Contains(offered, "status\n") {
		t.Errorf("completion offers %q", offered)
	}
}
