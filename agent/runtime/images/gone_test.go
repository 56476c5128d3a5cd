package images

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/mounted"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in namespaces of their own, since they mount.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }

// TestStickPulledOut: a folder at which nothing is mounted any more has lost nothing.
func TestStickPulledOut(t *testing.T) {
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "imported.json")
	stick := t.TempDir()
	plug := func() { t.Helper(); must(unix.Mount(stick, dir, "", unix.MS_BIND, "")) }
	pull := func() { t.Helper(); must(unix.Unmount(dir, 0)) }
	must(os.WriteFile(filepath.Join(stick, "kept.tar"), nil, 0o600))
	start := func() *Importer {
		t.Helper()
		i := New(Config{Dir: dir, State: state, Log: slog.New(slog.DiscardHandler)})
		var err error
		i.records, err = loadState(state)
		must(err)
		return i
	}
	expect := func(i *Importer, when string, want map[string]bool) {
		t.Helper()
		missing, err := i.absent()
		must(err)
		for name, proven := range want {
			if a, ok := missing[name]; !ok || a.removed != proven {
				t.Errorf("%s: %s is absent %v, proven %v", when, name, ok, a.removed)
			}
		}
		if len(missing) != len(want) {
			t.Errorf("%s: %v", when, missing)
		}
	}

	plug()
	i := start()
	bring := func(images ...string) imported {
		m := map[string]string{}
		for _, img := range images {
			m[img] = "sha256:0"
		}
		return imported{Images: m}
	}
	ctx := t.Context()
	must(i.record(ctx, nil, "kept.tar", record{imported: bring("a:1")}),
		i.record(ctx, nil, "app.tar", record{imported: bring("b:1", "b:2")}))
	i.records["old.tar"] = record{imported: bring("c:1")} // of a version that noted no place
	must(saveState(state, i.records))
	expect(i, "taken from the stick", map[string]bool{"app.tar": true, "old.tar": true})
	pull()
	for range 2 { // also after a start
		expect(i, "pulled out", map[string]bool{"kept.tar": false, "app.tar": false, "old.tar": false})
		i.forgetRemoved(ctx, nil)
		if len(i.records) != 3 {
			t.Errorf("forgotten: %v", i.records)
		}
		i = start()
	}
	i.forgetRemoved(ctx, nil)
	var said string
	for _, row := range i.Section(ctx).Rows {
		said += fmt.Sprintln(row)
	}
	for _, want := range []string{"app.tar waiting", "not mounted there", "umiak ctr images rm b:1 b:2"} {
		if !strings.Contains(said, want) {
			t.Errorf("status does not say %q: %s", want, said)
		}
	}
	// What somebody removes all the same is given up.
	i.forgetImage("b:1")
	expect(i, "one of two removed", map[string]bool{"kept.tar": false, "app.tar": false, "old.tar": false})
	i.forgetImage("b:2")
	expect(start(), "both removed", map[string]bool{"kept.tar": false, "old.tar": false})
	must(os.WriteFile(filepath.Join(dir, "new.tar"), nil, 0o600))
	expect(i, "another archive below", map[string]bool{"kept.tar": false, "old.tar": true})
	plug()
	expect(i, "plugged in", map[string]bool{"old.tar": true})
	i.forgetImage("a:1") // the archive is there and brings it back
	if _, still := i.records["kept.tar"]; !still {
		t.Error("an archive that is there was given up")
	}
	if mounted.At(dir) != i.records["kept.tar"].Place {
		t.Error("a file system that is not the one that it was")
	}
	pull()
}
