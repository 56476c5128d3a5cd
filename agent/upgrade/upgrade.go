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

	"github.com/umiak-io/umiak/agent/bundle"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/layout"
)

// Script is the file in Config.Etc that install.sh leaves of itself.
const Script = "install.sh"

// Config says to what.
type Config struct {
	Etc     string // the folder of settings
	Version string // of a release, where install.sh finds those
	Base    string // where that is, if it is another place than the last time
	// AllowOlder is the word for a release that is older than the one that runs.
	AllowOlder bool
	// Sources are places of releases from which the cluster may have this node upgraded, besides that of the last time.
	Sources []string
	From    string // or an archive of one, or a bundle, or the folder of either
	Dirs    layout.Dirs
	Lock    string // a file; whoever upgrades this node holds its lock
	DryRun  bool
	Out     io.Writer

	programAlone bool // and nothing else of a bundle
}

// ErrNotInstalled means that there is no Script.
var ErrNotInstalled = errors.New("umiak was not installed here by install.sh; update it with the package manager if it came as a package, or replace the program yourself and restart it")

// Run upgrades and returns when the new version is ready, or the old one is back: then with an error.
func Run(ctx context.Context, cfg Config) error {
	if (cfg.Version == "") == (cfg.From == "") {
		return errors.New("say either --version or --from")
	}
	// The run directory goes with the boot, and the node may not have run since.
	if err := os.MkdirAll(filepath.Dir(cfg.Lock), 0o711); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	release, err := filelock.Try(cfg.Lock)
	if errors.Is(err, filelock.ErrHeld) {
		return fmt.Errorf("another upgrade of this node is running: %w", err)
	}
	if err != nil {
		return fmt.Errorf("hold off other upgrades of this node: %w", err)
	}
	defer release()
	source := ""
	if cfg.From != "" {
		dir, remove, err := bundle.Folder(cfg.From)
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
	env := slices.DeleteFunc(httpproxy.Environ(), func(v string) bool { return strings.HasPrefix(v, "UMIAK_") }) // it would keep them
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
	if cfg.programAlone {
		env = append(env, "INSTALL_UMIAK_ONLY=program")
	}
	args := []string{script}
	if cfg.DryRun {
		args = append(args, "--dry-run")
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, cfg.Out, cfg.Out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it puts back what it has begun
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("not upgraded: install.sh: %w", err)
	}
	return nil
}

// place puts what is in a bundle without a release where it belongs.
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
		fmt.Fprintln(cfg.Out, "the settings count from the next start of umiak on")
	}
	return err
}

// unfinished is the file in Config.Etc that takes back what install.sh has put there, when the node starts again before
// the new version was ready: the power went, or whoever installed it was killed.
const unfinished = "unfinished"

// Confirm says that the version that runs is good: it is not to be taken back any more.
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
