package upgrade

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// counted are the commands that change something. Each may be the last one that a shell gets to.
const counted = `
i=0
step() { i=$((i + 1)); [ "$i" != "${DIES_AT:-0}" ] || kill -9 $$; }
for c in mv ln cp rm chmod mkdir rmdir; do eval "$c() { step; command $c \"\$@\"; }"; done
sync() { step; } # takes long, and a shell's end loses nothing
`

// switching is install.sh up to its switch from old files to new ones, in folders of the test's.
func switching(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile("../../install.sh")
	if err != nil {
		t.Fatal(err)
	}
	body, last := strings.CutSuffix(strings.TrimSpace(string(raw)), `main "$@"`)
	if !last {
		t.Fatal("install.sh does not end with its call of main")
	}
	return strings.ReplaceAll(body, "/etc/umiak", dir+"/etc") + fmt.Sprintf(`
cd %q
NAME=program WORKING=$PWD/run stage=$PWD/bin/.umiak-install.x was=server changed='' INIT=none n=0
mkdir -p "$stage"
: >"$stage/plan"
for f in program settings fresh; do echo new >"$stage/$f"; done
echo new >stick
place "$stage/program" "$PWD/bin/umiak" 755
place "$stage/settings" "$PWD/etc/settings" 600
place "$stage/fresh" "$PWD/etc/more/fresh" 600
place "$PWD/stick" "$PWD/data/agent/images/a.tar" 644 watched
%sswitch
`, dir, counted)
}

// files says what is where: all of the old, or all of the new, or a mixture.
func files(t *testing.T, dir string) string {
	t.Helper()
	var got []string
	for _, f := range []string{"bin/umiak", "etc/settings", "etc/more/fresh", "data/agent/images/a.tar"} {
		raw, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(string(raw)))
	}
	return strings.Join(got, ",")
}

const allOld, allNew = "old,old,,old", "new,new,new,new"

// A shell that is killed stands for a machine that loses its power: what was not synced yet is not lost here.
func TestSwitchThatIsCutOff(t *testing.T) {
	run := func(dir, script string, diesAt int) error {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
		cmd.Env, cmd.Dir = append(os.Environ(), fmt.Sprintf("DIES_AT=%d", diesAt)), dir
		out, err := cmd.CombinedOutput()
		if err != nil && diesAt == 0 {
			t.Fatalf("%v: %s", err, out)
		}
		return err
	}
	fresh := func() string {
		dir := t.TempDir()
		for _, f := range []string{"bin/umiak", "etc/settings", "data/agent/images/a.tar"} {
			file := filepath.Join(dir, f)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
				os.WriteFile(file, []byte("old\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	// boot is what the service's unit does.
	const boot = "if [ -e etc/unfinished ]; then " + "%s. etc/unfinished; fi"
	mixed := 0
	n := 1
	for ; ; n++ {
		dir := fresh()
		err := run(dir, switching(t, dir), n)
		if err != nil && n > 200 {
			t.Fatalf("it never gets to its end: %v", err)
		}
		if err == nil {
			if got := files(t, dir); got != allNew {
				t.Errorf("not cut off: %s", got)
			}
			break
		}
		if got := files(t, dir); got != allOld && got != allNew {
			mixed++
		}
		// And again in the first boot, at another place each time.
		_ = run(dir, fmt.Sprintf(boot, counted), 1+n%15)
		run(dir, fmt.Sprintf(boot, ""), 0)
		if got := files(t, dir); got != allOld {
			t.Errorf("cut off at step %d: %s", n, got)
		}
		for _, f := range []string{"bin/*.umiak-new", "etc/*.umiak-new", "etc/unfinished",
			"data/agent/images/*.umiak-new"} {
			if left, _ := filepath.Glob(filepath.Join(dir, f)); len(left) > 0 {
				t.Errorf("cut off at step %d: left %v", n, left)
			}
		}
	}
	if n < 30 || mixed < 2 {
		t.Errorf("only %d steps, of which %d left a mixture: this test tests nothing", n, mixed)
	}
}
