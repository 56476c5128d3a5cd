package mounted_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/mounted"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a mount namespace, since they mount file systems.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }

func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := mounted.Watch(ctx)
	at := t.TempDir()
	for _, change := range []func() error{
		func() error { return nil }, // the beginning of the watch
		func() error { return unix.Mount("tmpfs", at, "tmpfs", 0, "") },
		func() error { return unix.Unmount(at, 0) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.C:
		case err := <-w.Ended:
			t.Fatal(err)
		case <-time.After(30 * time.Second):
			t.Fatal("no value from Changes.C")
		}
	}
	cancel()
	if err := <-w.Ended; err != nil {
		t.Error(err)
	}
}

// TestAt checks that the identifier of a folder changes when its disk is unmounted, and not when the folder is removed.
func TestAt(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	dir := t.TempDir()
	at := filepath.Join(dir, "m")
	must(os.Mkdir(at, 0o755))
	sub := filepath.Join(at, "sub")
	bare := mounted.At(at)
	if bare == "" || mounted.At(sub) != bare || mounted.At(filepath.Join(sub, "gone")) != bare {
		t.Errorf("%q, %q", bare, mounted.At(sub))
	}
	other := filepath.Join(dir, "other") // of the same file system
	must(os.Mkdir(other, 0o755))
	for what, mount := range map[string]func() error{
		"a disk":       func() error { return unix.Mount("tmpfs", at, "tmpfs", 0, "") },
		"a bind mount": func() error { return unix.Mount(other, at, "", unix.MS_BIND, "") },
	} {
		must(mount())
		must(os.MkdirAll(sub, 0o755))
		disk := mounted.At(sub)
		if disk == "" || disk == bare || mounted.At(at) != disk {
			t.Errorf("%s: %q, %q, without it %q", what, disk, mounted.At(at), bare)
		}
		must(os.RemoveAll(sub))
		if mounted.At(sub) != disk {
			t.Errorf("%s: the identifier of a removed folder has changed", what)
		}
		must(unix.Unmount(at, 0))
		if mounted.At(sub) != bare {
			t.Errorf("%s: %q after it was unmounted, %q before it was mounted", what, mounted.At(sub), bare)
		}
	}
	must(os.Symlink("/nowhere/at/all", filepath.Join(dir, "link")))
	if p := mounted.At(filepath.Join(dir, "link", "sub")); p != "" {
		t.Errorf("behind a link into nothing: %q", p)
	}
}
