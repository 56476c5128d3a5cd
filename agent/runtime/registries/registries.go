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

	"github.com/umiak-io/umiak/internal/secretfiles"
	"github.com/umiak-io/umiak/internal/status"
)

// Config says where the settings are.
type Config struct {
	File string // a registries.yaml
	// MirrorsOnly keeps every registry that has a mirror in the file from being asked itself.
	MirrorsOnly bool
	Log         *slog.Logger
}

// Registries are the settings of one file, as it is now.
type Registries struct {
	path        string
	mirrorsOnly bool
	log         *slog.Logger
	now         atomic.Pointer[state]
}

type state struct {
	settings *Settings
	err      error // why pulls fail
	wrong    error // what is wrong with the file as it is, also where settings of before are in use
	there    bool
	sum      [sha256.Size]byte
}

// New reads the file. A file that is not there is an empty one; a broken one makes Hosts fail.
func New(cfg Config) *Registries {
	r := &Registries{path: cfg.File, mirrorsOnly: cfg.MirrorsOnly, log: cfg.Log}
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

// Read reads a file of settings. One that is not there is an empty one.
func Read(path string) (*Settings, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return Parse(path, text)
}

// Status says for `umiak status` what is in force, and what is wrong with the file.
func (r *Registries) Status(context.Context) status.Section {
	s := r.now.Load()
	out := status.Section{Name: "Registries"}
	row := func(state, detail string) {
		out.Rows = append(out.Rows, status.Row{Name: r.path, State: state, Detail: detail})
	}
	if s.wrong != nil {
		state := "wrong, no image can be pulled"
		if s.err == nil {
			state = "wrong, the settings before it stay in use"
		}
		for _, line := range strings.Split(s.wrong.Error(), "\n") {
			row(state, line)
		}
		return out
	}
	if err := s.settings.Unreadable(); err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			row("cannot be used now", line)
		}
		return out
	}
	if s.there {
		row("in use", fmt.Sprintf("mirrors for %d registries, settings for %d hosts", len(s.settings.Mirrors), len(s.settings.Configs)))
	}
	return out
}

// load reads the file again if it has changed.
func (r *Registries) load() {
	text, err := os.ReadFile(r.path)
	there := true
	if errors.Is(err, fs.ErrNotExist) {
		text, err, there = nil, nil, false
	}
	next := &state{sum: sha256.Sum256(text), there: there}
	before := r.now.Load()
	if err == nil && before != nil && before.sum == next.sum && before.there == there {
		return
	}
	if err == nil {
		next.settings, err = Parse(r.path, text)
	}
	if next.wrong = err; err == nil {
		next.settings.MirrorsOnly = r.mirrorsOnly
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
	if err == nil && next.settings.Secret() {
		if why := secretfiles.File(r.path); why != "" {
			r.log.Warn(why)
		}
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
