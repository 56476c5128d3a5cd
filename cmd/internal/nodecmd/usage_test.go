package nodecmd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	ucli "github.com/urfave/cli/v2"
)

func TestAFlagBeforeTheCommandIsToldItsPlace(t *testing.T) {
	for line, want := range map[string]string{
		"--data-dir X status":      "--data-dir belongs behind the command, as `umiak COMMAND --data-dir …`",
		"images --data-dir X list": "--data-dir belongs behind the command, as `umiak images COMMAND --data-dir …`",
		"--nonsense status":        "unknown flag --nonsense",
		"status --purge":           "unknown flag --purge",
	} {
		var w Where
		app := &ucli.App{Name: "umiak", Commands: Node(w), Writer: io.Discard, ErrWriter: io.Discard,
			ExitErrHandler: func(*ucli.Context, error) {}}
		Strict(app)
		err := app.RunContext(t.Context(), append([]string{"umiak"}, strings.Fields(line)...))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestWhoIsNotRootIsToldSo(t *testing.T) {
	refused := fmt.Errorf("make directory: %w", &fs.PathError{Op: "mkdir", Path: "/run/umiak", Err: fs.ErrPermission})
	if got := withRemedy(refused, 1000); !strings.HasSuffix(got, "; run this as root") {
		t.Error(got)
	}
	for uid, err := range map[int]error{0: refused, 1000: errors.New("other"),
		1001: fmt.Errorf("run this as root: %w", fs.ErrPermission)} {
		if got := withRemedy(err, uid); got != err.Error() {
			t.Error(got)
		}
	}
}
