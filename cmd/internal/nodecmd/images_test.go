package nodecmd

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	ucli "github.com/urfave/cli/v2"
)

// TestImagesWhereNothingRuns: the reason is said at once, and in the words of `umiak status`.
func TestImagesWhereNothingRuns(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"list", "import x.tar", "export --file x.tar busybox"} {
		var w Where
		app := &ucli.App{Name: "umiak", Commands: []*ucli.Command{Images(w)}, Writer: io.Discard, ErrWriter: io.Discard,
			ExitErrHandler: func(*ucli.Context, error) {}}
		name, rest, _ := strings.Cut(line, " ")
		argv := append([]string{"umiak", "images", name, "--data-dir", filepath.Join(dir, "data"), "--run-dir",
			filepath.Join(dir, "run")}, strings.Fields(rest)...)
		err := app.RunContext(t.Context(), argv)
		if err == nil || !strings.HasPrefix(err.Error(), "umiak is not running (no answer on "+dir) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
