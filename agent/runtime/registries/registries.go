package registries

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/umiak-io/umiak/agent/host/filewatch"
	"github.com/umiak-io/umiak/internal/secretfiles"
	"github.com/umiak-io/umiak/internal/status"
)

// Config describes where the settings are.
type Config struct {
	File string // path of registries.yaml; the file need not exist
	// MirrorsOnly excludes every registry that has a mirror in the file: images come from the mirror alone.
	MirrorsOnly bool
	Log         *slog.Logger
}

// Registries holds the current settings of one file.
type Registries struct {
	path        string
	mirrorsOnly bool
	log         *slog.Logger
	now         atomic.Pointer[state]
}

type state struct {
	settings *Settings
	err      error // why pulls fail; nil if settings are in use
	fileErr  error // what is wrong with the file, also if earlier settings are in use
	exists   bool
	sum      [sha256.Size]byte
}

// New reads the file. A missing file counts as empty. If the file is invalid, Hosts returns its error.
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

// Read reads a file of settings. A missing file counts as empty.
func Read(path string) (*Settings, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return Parse(path, text)
}

var _ status.Reporter = (*Registries)(nil)

// Section reports the settings in use and the errors of the file.
func (r *Registries) Section(context.Context) status.Section {
	s := r.now.Load()
	out := status.Section{Name: "Registries"}
	row := func(state, detail string) {
		out.Rows = append(out.Rows, status.Row{Name: r.path, State: state, Detail: detail})
	}
	if s.fileErr != nil {
		state := "wrong, no image can be pulled"
		if s.err == nil {
			state = "wrong, the settings before it stay in use"
		}
		for _, line := range strings.Split(s.fileErr.Error(), "\n") {
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
	if s.exists {
		row("in use", fmt.Sprintf("mirrors for %d registries, settings for %d hosts", len(s.settings.Mirrors),
			len(s.settings.Configs)))
	}
	return out
}

// load reads the file and applies it if it has changed.
func (r *Registries) load() {
	text, err := os.ReadFile(r.path)
	exists := true
	if errors.Is(err, fs.ErrNotExist) {
		text, err, exists = nil, nil, false
	}
	next := &state{sum: sha256.Sum256(text), exists: exists}
	before := r.now.Load()
	if err == nil && before != nil && before.sum == next.sum && before.exists == exists {
		return
	}
	if err == nil {
		next.settings, err = Parse(r.path, text)
	}
	if next.fileErr = err; err == nil {
		next.settings.MirrorsOnly = r.mirrorsOnly
	}
	switch {
	case err == nil:
		if before != nil {
			r.log.Info("registry settings reloaded", "file", r.path, "mirrors", len(next.settings.Mirrors))
		}
	case before == nil || before.err != nil:
		next.err = fmt.Errorf("registry settings: %w", err)
		r.log.Error("registry settings are invalid, no image can be pulled until the file is corrected", "error", err)
	default:
		next.settings = before.settings
		r.log.Error("registry settings are invalid, the previous ones stay in use", "error", err)
	}
	if err == nil && next.settings.Secret() {
		if why := secretfiles.File(r.path); why != "" {
			r.log.Warn(why)
		}
	}
	r.now.Store(next)
}

// Run follows the file until ctx ends.
func (r *Registries) Run(ctx context.Context, ready func()) error {
	ready = sync.OnceFunc(ready)
	return filewatch.Follow(ctx, filewatch.Config{
		Name: "the registry settings", Files: []string{r.path}, Log: r.log,
		Changed: func() error { // first when the watch has begun: the file may have changed since New
			r.load()
			ready()
			return nil
		},
	})
}
