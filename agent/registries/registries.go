package registries

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/fsnotify/fsnotify"
)

// Registries are the settings of one file, as it is now.
type Registries struct {
	path string
	log  *slog.Logger
	now  atomic.Pointer[state]
}

type state struct {
	settings *Settings
	err      error // why pulls fail
	sum      [sha256.Size]byte
}

// New reads the file. A file that is not there is an empty one; a broken one makes Hosts fail.
func New(path string, log *slog.Logger) *Registries {
	r := &Registries{path: path, log: log}
	r.load()
	return r
}

// Hosts returns the hosts to try for a registry, in order.
func (r *Registries) Hosts(registry string, request Credentials) ([]docker.RegistryHost, error) {
	s := r.now.Load()
	if s.err != nil {
		return nil, s.err
	}
	return s.settings.Hosts(registry, request)
}

// load reads the file again if it has changed.
func (r *Registries) load() {
	text, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = nil, nil
	}
	next := &state{sum: sha256.Sum256(text)}
	before := r.now.Load()
	if err == nil && before != nil && before.sum == next.sum {
		return
	}
	if err == nil {
		next.settings, err = Parse(r.path, text)
	}
	switch {
	case err == nil:
		if before != nil {
			r.log.Info("registry settings read again", "file", r.path, "mirrors", len(next.settings.Mirrors))
		}
	case before == nil || before.err != nil:
		next.err = fmt.Errorf("registry settings: %w", err)
		r.log.Error("registry settings are wrong, no image can be pulled until they are put right", "error", err)
	default:
		next.settings = before.settings
		r.log.Error("registry settings are wrong, the ones before stay in use", "error", err)
	}
	r.now.Store(next)
}

// settle is how long a file must be left alone before it is read: editors write in several steps.
const settle = 100 * time.Millisecond

// Run follows the file until ctx ends.
func (r *Registries) Run(ctx context.Context, ready func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", r.path, err)
	}
	defer w.Close() //nolint:errcheck // nothing is lost with a watch
	watched, err := r.watch(w, "")
	if err != nil {
		return fmt.Errorf("watch %s: %w", r.path, err)
	}
	r.load() // what has changed since New
	ready()
	quiet := time.NewTimer(settle)
	quiet.Stop()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watch ended")
			}
			// What lies on the way to the file matters, and in its own folder whatever comes and goes,
			// since the file may be a link to a link, as in a mounted ConfigMap. The timer is not set
			// again while it runs: a busy folder must not put the reading off for ever.
			onTheWay := e.Name == r.path || e.Name == watched || strings.HasPrefix(r.path, e.Name+"/")
			moved := filepath.Dir(r.path) == watched && e.Op&(fsnotify.Create|fsnotify.Rename|fsnotify.Remove) != 0
			if (onTheWay || moved) && !pending {
				pending = true
				quiet.Reset(settle)
			}
		case <-quiet.C:
			pending = false
			if watched, err = r.watch(w, watched); err != nil {
				return fmt.Errorf("watch %s: %w", r.path, err)
			}
			r.load()
		case err := <-w.Errors:
			// An overflow loses events, so everything is looked at.
			r.log.Warn("watch registry settings", "error", err)
			pending = true
			quiet.Reset(settle)
		}
	}
}

// watch watches the file's folder, or the nearest one above it that exists.
func (r *Registries) watch(w *fsnotify.Watcher, old string) (string, error) {
	for dir := filepath.Dir(r.path); ; dir = filepath.Dir(dir) {
		err := w.Add(dir)
		if err == nil {
			if old != "" && old != dir {
				_ = w.Remove(old) // gone with its folder, perhaps
			}
			return dir, nil
		}
		if dir == "/" || !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "no such file") {
			return "", err
		}
	}
}
