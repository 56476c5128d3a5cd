package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/bundle"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/layout"
)

// Script is the file in Config.Etc in which install.sh stores a copy of itself.
const Script = "install.sh"

// Config describes one upgrade of this node. Exactly one of Version and From must be set.
type Config struct {
	Etc     string // the settings folder
	Version string // the release to install; "" with From
	Base    string // where to find releases; "" means the place of the last installation
	// AllowOlder permits a release that is older than the running one.
	AllowOlder bool
	// Sources are the places of releases that the cluster may request besides that of the last installation.
	Sources []string
	From    string // a release's archive, a bundle, or a folder with the content of either; "" with Version
	Dirs    layout.Dirs
	Lock    string // lock file that every upgrade of this node locks
	DryRun  bool
	Out     io.Writer

	programOnly bool // install only the program of a bundle
}

// ErrNotInstalled means that Script does not exist.
var ErrNotInstalled = errors.New(
	"umiak was not installed here by install.sh; update it with the package manager if it came as a package, or replace the program yourself and restart it")

// Run upgrades and returns when the new version is ready. It returns an error when the old version has been restored,
// as install.sh does also when ctx ends meanwhile: the error then wraps the cause.
func Run(ctx context.Context, cfg Config) error {
	if (cfg.Version == "") == (cfg.From == "") {
		return errors.New("set either --version or --from")
	}
	// The run directory does not survive a reboot, and the node may not have run since.
	if err := os.MkdirAll(filepath.Dir(cfg.Lock), 0o711); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	release, err := filelock.Try(cfg.Lock)
	if errors.Is(err, filelock.ErrHeld) {
		return fmt.Errorf("another upgrade of this node is running: %w", err)
	}
	if err != nil {
		return fmt.Errorf("lock out other upgrades of this node: %w", err)
	}
	defer release()
	source := ""
	if cfg.From != "" {
		dir, remove, err := bundle.Folder(ctx, cfg.From)
		if err != nil {
			return fmt.Errorf("release in %s: %w", cfg.From, err)
		}
		defer remove()
		if !bundle.HasRelease(dir) {
			return cfg.place(dir)
		}
		source = dir
	}
	script := filepath.Join(cfg.Etc, Script)
	if _, err := os.Stat(script); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", script, ErrNotInstalled)
	}
	// install.sh would store them as settings
	env := slices.DeleteFunc(httpproxy.Environ(), func(v string) bool { return strings.HasPrefix(v, "UMIAK_") })
	if source != "" {
		env = append(env, "INSTALL_UMIAK_SOURCE="+source)
	} else {
		env = append(env, "INSTALL_UMIAK_VERSION="+cfg.Version)
		if cfg.Base != "" {
			env = append(env, "INSTALL_UMIAK_BASE_URL="+cfg.Base)
		}
	}
	if cfg.AllowOlder {
		env = append(env, "INSTALL_UMIAK_ALLOW_OLDER=true")
	}
	if cfg.programOnly {
		env = append(env, "INSTALL_UMIAK_ONLY=program")
	}
	args := []string{script}
	if cfg.DryRun {
		args = append(args, "--dry-run")
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, cfg.Out, cfg.Out
	// install.sh then undoes its changes. Not SIGINT: a shell in the background ignores that.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	err = cmd.Run()
	switch {
	case err == nil, ctx.Err() != nil && cmd.ProcessState != nil && cmd.ProcessState.Success():
		return nil // also where install.sh was done when ctx ended
	case ctx.Err() != nil:
		return fmt.Errorf("not upgraded: %w: install.sh: %w", context.Cause(ctx), err)
	}
	return fmt.Errorf("not upgraded: install.sh: %w", err)
}

// place copies the content of a bundle without a release to its places on this node.
func (cfg Config) place(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, bundle.Sums)); err != nil {
		return fmt.Errorf("%s is neither a release nor a bundle", cfg.From)
	}
	if cfg.DryRun {
		targets, err := bundle.Targets(dir, true, cfg.Dirs)
		for _, t := range targets {
			fmt.Fprintln(cfg.Out, "would place", t.Path)
		}
		return err
	}
	placed, err := bundle.Place(dir, cfg.Dirs)
	for _, p := range placed {
		fmt.Fprintln(cfg.Out, "placed", p)
	}
	if err == nil && slices.Contains(placed, bundle.Settings) {
		fmt.Fprintln(cfg.Out, "the settings take effect at the next start of umiak")
	}
	return err
}

// unfinished is the script in Config.Etc that undoes install.sh's changes if the node starts again before the new
// version was ready, because of a power failure or a kill.
const unfinished = "unfinished"

// Confirm marks the running version as working, so that it is not undone.
func Confirm(etc string) error {
	err := os.Remove(filepath.Join(etc, unfinished))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = atomicfile.SyncDir(etc)
	}
	if err != nil {
		return fmt.Errorf("confirm the installed version: %w", err)
	}
	return nil
}
