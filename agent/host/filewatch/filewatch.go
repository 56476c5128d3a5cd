package filewatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/mounted"
)

// Config describes what to follow.
type Config struct {
	Name  string   // of the files, for errors and log lines
	Files []string // absolute paths
	// Mounts also reports that another file has been mounted over one of them.
	Mounts bool
	// Changed is called once when the watch has begun, and after each change.
	Changed func() error
	Log     *slog.Logger
}

// settleTime is the delay between a change and the call of Changed: a file is often truncated before it is written.
const settleTime = 100 * time.Millisecond

// maxLinks is how many links the kernel follows in one path (MAXSYMLINKS).
const maxLinks = 40

// Follow watches the files until ctx ends, or until Changed or the watch fails.
func Follow(ctx context.Context, cfg Config) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s (out of inotify instances? raise fs.inotify.max_user_instances): %w", cfg.Name, err)
	}
	defer w.Close() //nolint:errcheck // holds no data
	var mounts mounted.Changes
	if cfg.Mounts {
		watching, stop := context.WithCancel(ctx)
		mounts = mounted.Watch(watching)
		defer func() {
			stop()
			<-mounts.Ended //nolint:errcheck // canceled above
		}()
	}
	f := &follower{Config: cfg, watcher: w}
	return f.run(ctx, mounts)
}

// follower is the state of Follow.
type follower struct {
	Config
	watcher *fsnotify.Watcher
	watched []string // the watched paths
	seen    string   // identity of the files when Changed was called last
}

func (f *follower) run(ctx context.Context, mounts mounted.Changes) error {
	timer := time.NewTimer(0) // the files may have changed before the watch began
	defer timer.Stop()
	pending := true
	// The timer is not reset while it runs: a file that changes all the time must not delay the call forever.
	settle := func() {
		if !pending {
			pending = true
			timer.Reset(settleTime)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-f.watcher.Events:
			if !ok {
				return fmt.Errorf("watch %s: ended", f.Name)
			}
			if f.differs() { // otherwise it is another file in the folder
				settle()
			}
		case <-mounts.C:
			if f.identity() != f.seen {
				settle()
			}
		case err := <-mounts.Ended:
			return err
		case err := <-f.watcher.Errors:
			f.Log.Warn("changes may have been missed, looking again", "of", f.Name, "error", err)
			settle()
		case <-timer.C:
			pending = false
			if err := f.update(); err != nil {
				return err
			}
			if f.differs() { // changed while it was read
				settle()
			}
		}
	}
}

// update renews the watch, since a path may lead to another file now, and calls Changed, also if the watch fails: a
// caller that tries again goes on with the files as they are.
func (f *follower) update() error {
	watch := f.watch()
	f.seen = f.identity()
	return errors.Join(f.Changed(), watch)
}

// differs reports whether the files, or the paths that lead to them, have changed since the last call of Changed.
func (f *follower) differs() bool {
	return f.identity() != f.seen || !slices.Equal(f.paths(), f.watched)
}

// identity changes whenever one of the files is replaced or written.
func (f *follower) identity() string {
	var out bytes.Buffer
	for _, p := range f.Files {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			fmt.Fprintf(&out, "%s: %v\n", p, err)
			continue
		}
		fmt.Fprintf(&out, "%d:%d %d %d.%d %d.%d\n", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec,
			st.Ctim.Nsec)
	}
	return out.String()
}

// paths returns what to watch: the files, their folders, and the folders of all links on the way. Replacing a file by
// rename is only visible in its folder, and writing to a mounted file only on the file itself. For a missing folder, it
// is the nearest existing parent.
func (f *follower) paths() []string {
	var out []string
	for _, p := range f.Files {
		for range maxLinks {
			out = append(out, host.Existing(filepath.Dir(p)))
			to, err := os.Readlink(p)
			if err != nil {
				break
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(p), to)
			}
			p = to
		}
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// watch replaces all watches. The error names the paths whose changes nothing would report.
func (f *follower) watch() error {
	for _, old := range f.watcher.WatchList() {
		_ = f.watcher.Remove(old)
	}
	f.watched = f.paths()
	var errs []error
	for _, p := range f.watched {
		if err := f.watcher.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("watch %s at %s (out of inotify watches? raise fs.inotify.max_user_watches): %w",
				f.Name, p, err))
		}
	}
	return errors.Join(errs...)
}
