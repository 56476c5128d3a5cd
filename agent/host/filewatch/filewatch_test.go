package filewatch

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestFollow: a file is followed wherever it comes from: with its folder, by a write, a rename, a link, another target
// of a link on the way, and a removal.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "etc", "settings")
	var read atomic.Value
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Follow(ctx, Config{Name: "the settings", Files: []string{file}, Log: slog.New(slog.DiscardHandler),
			Changed: func() error {
				text, _ := os.ReadFile(file)
				read.Store(string(text))
				return nil
			}})
	}()
	becomes := func(what, want string) {
		t.Helper()
		eventually.True(t, what, func() bool { return read.Load() == want })
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, []byte(text), 0o600))
	}
	becomes("a file that does not exist", "")
	write("etc/settings", "written")
	becomes("a file in a new folder", "written")
	write("etc/new", "renamed")
	must(os.Rename(filepath.Join(dir, "etc/new"), file))
	becomes("a file that is renamed", "renamed")
	// As the kubelet mounts a ConfigMap.
	write("etc/v1/settings", "linked")
	write("etc/v2/settings", "linked again")
	must(os.Symlink("v1", filepath.Join(dir, "etc/data")))
	must(os.Symlink("data/settings", filepath.Join(dir, "etc/link")))
	must(os.Rename(filepath.Join(dir, "etc/link"), file))
	becomes("a link", "linked")
	must(os.Symlink("v2", filepath.Join(dir, "etc/data.new")))
	must(os.Rename(filepath.Join(dir, "etc/data.new"), filepath.Join(dir, "etc/data")))
	becomes("another target of the link's folder", "linked again")
	write("etc/v2/settings", "behind the link")
	becomes("a write behind the link", "behind the link")
	must(os.RemoveAll(filepath.Join(dir, "etc")))
	becomes("the removal of the folder", "")
	write("etc/settings", "back")
	becomes("a folder that is made again", "back")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWatchFails: the error of a path that cannot be watched ends Follow, after the files as they are have been read.
func TestWatchFails(t *testing.T) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil { // every Add fails
		t.Fatal(err)
	}
	calls := 0
	f := &follower{watcher: w, Config: Config{Name: "the settings", Files: []string{filepath.Join(t.TempDir(), "file")},
		Log: slog.New(slog.DiscardHandler), Changed: func() error {
			calls++
			return nil
		}}}
	if err := f.update(); !errors.Is(err, fsnotify.ErrClosed) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
