package uninstall

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
)

// List is the file in Config.Etc with the files that install.sh made, one a line.
const List = "installed"

// SettingsRead is what install.sh has the service write at its start: the sum of its settings. It is not in List, which programs of
// other versions read as well.
const SettingsRead = "/run/umiak-settings"

// Config says what to take away.
type Config struct {
	Etc     string                                         // the folder of settings, with List in it
	Keep    bool                                           // leaves Etc but for List; Cleanup knows of the data by itself
	Cleanup func(context.Context) error                    // takes away what the node put on the machine, once it is stopped
	Command func(context.Context, string, ...string) error // runs a program of the init system
	Out     io.Writer
}

// files are what install.sh may have made, by their names.
var files = []string{
	"umiak", "umiak-agent", "umiak.service", "umiak-agent.service", // programs, services, logrotate's settings
	"umiak.log", "umiak-agent.log", "umiak.log.1", "umiak-agent.log.1",
}

// ErrNotInstalled means that there is no List.
var ErrNotInstalled = errors.New("umiak was not installed here by install.sh; a package is removed with the package manager, and `umiak cleanup --purge` removes what a node left")

// Read returns the files of List. Anything in it that install.sh does not write is an error: they are about to be removed.
func Read(etc string) ([]string, error) {
	name := filepath.Join(etc, List)
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotInstalled)
	}
	if err != nil {
		return nil, err
	}
	all, err := parse(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

func parse(text string) ([]string, error) {
	var all []string
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if !filepath.IsAbs(line) || filepath.Clean(line) != line || !slices.Contains(files, filepath.Base(line)) {
			return nil, fmt.Errorf("line %d: %q is no file that install.sh makes", i+1, line)
		}
		all = append(all, line)
	}
	return all, nil
}

// Run takes everything away. It stops at the first error, so that what is needed to run it again is still there.
func Run(ctx context.Context, cfg Config) error {
	all, err := Read(cfg.Etc)
	if err != nil {
		return err
	}
	var others, units []string
	for _, f := range all {
		if dir := filepath.Dir(f); dir == "/etc/init.d" || strings.HasSuffix(f, ".service") {
			units = append(units, f)
		} else {
			others = append(others, f)
		}
	}
	for _, u := range units {
		if err := stop(ctx, cfg, u); err != nil {
			return err
		}
	}
	if err := cfg.Cleanup(ctx); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	for _, u := range units {
		if err := remove(cfg, u); err != nil {
			return err
		}
		removeServiceCgroups(filepath.Base(u))
	}
	if slices.ContainsFunc(units, isSystemd) {
		if err := cfg.Command(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
	}
	if cfg.Keep {
		if err := remove(cfg, filepath.Join(cfg.Etc, List)); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(cfg.Out, "removing %s\n", cfg.Etc)
		if err := os.RemoveAll(cfg.Etc); err != nil {
			return fmt.Errorf("remove settings: %w", err)
		}
	}
	for _, p := range others { // this process' own file among them
		if err := remove(cfg, p); err != nil {
			return err
		}
	}
	return nil
}

func isSystemd(unit string) bool { return strings.HasSuffix(unit, ".service") }

// stop ends a service and its starts at boot. One whose unit is gone is stopped already: that is where an earlier run was.
func stop(ctx context.Context, cfg Config, unit string) error {
	if _, err := os.Lstat(unit); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	name := filepath.Base(unit)
	fmt.Fprintf(cfg.Out, "stopping %s\n", name)
	if isSystemd(unit) {
		return cfg.Command(ctx, "systemctl", "--quiet", "disable", "--now", name)
	}
	if err := cfg.Command(ctx, "rc-service", "--ifstarted", name, "stop"); err != nil {
		return err
	}
	if _, err := os.Lstat("/etc/runlevels/default/" + name); err != nil {
		return nil
	}
	return cfg.Command(ctx, "rc-update", "--quiet", "delete", name)
}

// removeServiceCgroups removes those that OpenRC makes for a service and leaves when it stops. One with a process in it,
// which is not ours then, stays: rmdir is refused.
func removeServiceCgroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/openrc.%s", "/sys/fs/cgroup/unified/%s", "/sys/fs/cgroup/unified/openrc.%s", "/sys/fs/cgroup/openrc/%s"} {
		_ = unix.Rmdir(fmt.Sprintf(pattern, name))
	}
}

func remove(cfg Config, file string) error {
	err := os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		fmt.Fprintf(cfg.Out, "removed %s\n", file)
	}
	return err
}

// Command runs a program for Config.Command; what it prints is in the error.
func Command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
