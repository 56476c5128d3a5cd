package nodecmd

import (
	"io"
	"strings"
	"testing"

	ucli "github.com/urfave/cli/v2"
)

// TestArgumentsThatNobodyTakesAreRefused asks every command that says nothing of arguments, before it does anything.
func TestArgumentsThatNobodyTakesAreRefused(t *testing.T) {
	var w Where
	n := 0
	var walk func(path []string, list []*ucli.Command)
	walk = func(path []string, list []*ucli.Command) {
		for _, c := range list {
			path := append(path[:len(path):len(path)], c.Name)
			if walk(path, c.Subcommands); len(c.Subcommands) > 0 || c.ArgsUsage != "" || c.SkipFlagParsing {
				continue
			}
			n++
			app := &ucli.App{Name: "umiak", Commands: append(Node(w), Agent(), Certificate(w), Bundle(w)),
				Writer: io.Discard, ErrWriter: io.Discard,
				ExitErrHandler: func(*ucli.Context, error) {}}
			if err := app.RunContext(t.Context(), append(path, "extra")); err == nil ||
				!strings.Contains(err.Error(), `takes no argument "extra"`) {
				t.Errorf("%s extra: %v", strings.Join(path, " "), err)
			}
		}
	}
	walk([]string{"umiak"}, append(Node(w), Agent(), Certificate(w), Bundle(w)))
	if n < 5 {
		t.Errorf("only %d commands were asked", n)
	}
}
