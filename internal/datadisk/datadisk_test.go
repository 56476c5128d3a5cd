package datadisk_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a mount namespace, since they mount file systems.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }

type machine struct {
	*testing.T
	etc, data string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	m := &machine{t, t.TempDir(), filepath.Join(t.TempDir(), "data")}
	m.must(os.Mkdir(m.data, 0o755))
	return m
}

func (m *machine) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *machine) mount(disk string) {
	m.Helper()
	m.must(unix.Mount(disk, m.data, "", unix.MS_BIND, ""))
}

func (m *machine) unmount() {
	m.Helper()
	m.must(unix.Unmount(m.data, 0))
}

// start does what a node does at its start.
func (m *machine) start() {
	m.Helper()
	m.must(datadisk.Check(m.etc, m.data))
	m.must(datadisk.Save(m.etc, m.data, "/run/umiak"))
}

func (m *machine) refused(what string) {
	m.Helper()
	if err := datadisk.Check(m.etc, m.data); !errors.Is(err, datadisk.ErrMissing) ||
		!strings.Contains(err.Error(), m.data) || !strings.Contains(err.Error(), filepath.Join(m.etc, datadisk.File)) {
		m.Errorf("%s: %v", what, err)
	}
}

func TestDiskThatIsNotMounted(t *testing.T) {
	m := newMachine(t)
	disk, bigger := t.TempDir(), t.TempDir()
	m.mount(disk)
	m.start()
	before, err := os.ReadFile(filepath.Join(m.etc, datadisk.File))
	m.must(err)
	m.start()
	if after, _ := os.ReadFile(filepath.Join(m.etc, datadisk.File)); string(after) != string(before) {
		t.Error("written again though nothing has changed")
	}
	m.unmount()
	m.refused("nothing is mounted")
	m.mount(bigger)
	m.refused("an empty disk is mounted")
	m.unmount()

	// The data are copied to another disk and used there. The copy on the old disk is not accepted afterwards.
	m.must(exec.CommandContext(t.Context(), "cp", "-a", disk+"/.", bigger).Run())
	m.mount(bigger)
	m.start()
	m.unmount()
	m.mount(disk)
	m.refused("the disk of before is mounted")
	m.unmount()
	m.mount(bigger)
	m.start()

	// The data directory is a link to a folder on a disk.
	link := &machine{t, m.etc, filepath.Join(t.TempDir(), "link")}
	m.must(os.Symlink(m.data, link.data))
	link.start()
	m.unmount()
	link.refused("the link's target is not mounted")
	m.must(os.Rename(m.data, m.data+".away"))
	link.refused("the link leads nowhere")
	m.must(os.Rename(m.data+".away", m.data))
	m.mount(bigger)
	link.start()

	// The remedy that the error names.
	m.unmount()
	m.refused("nothing is mounted")
	m.must(os.Remove(filepath.Join(m.etc, datadisk.File)))
	m.start()
}

func TestDataThatAPersonRemoved(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.must(os.RemoveAll(m.data))
	m.start0()
	m.start()
	m.must(datadisk.Forget(m.etc, m.data))
	if _, err := os.Stat(filepath.Join(m.etc, datadisk.File)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file with no note is left")
	}
	m.must(datadisk.Forget(m.etc, m.data))
}

func (m *machine) start0() {
	m.Helper()
	m.must(datadisk.Check(m.etc, m.data))
	m.must(os.Mkdir(m.data, 0o755))
}

// TestPowerLoss covers a power cut after the note and before the mark is written.
func TestPowerLoss(t *testing.T) {
	m := newMachine(t)
	disk := t.TempDir()
	m.start()
	m.must(exec.CommandContext(t.Context(), "cp", "-a", m.data+"/.", disk).Run())
	old, err := os.ReadFile(filepath.Join(disk, "mark"))
	m.must(err)
	m.mount(disk)
	m.start()
	m.must(os.WriteFile(filepath.Join(disk, "mark"), old, 0o600))
	m.start()
	m.unmount()
	m.refused("the data that were copied")
}

func TestNoSettings(t *testing.T) {
	m := newMachine(t)
	m.etc = filepath.Join(m.etc, "none")
	m.start()
	if _, err := os.Stat(m.etc); err == nil {
		t.Error("a folder of settings was made")
	}
	other := newMachine(t)
	other.start()
	second := &machine{t, other.etc, t.TempDir()}
	second.start()
	if notes, err := datadisk.Read(other.etc); err != nil || len(notes) != 2 {
		t.Error(notes, err)
	}
}
