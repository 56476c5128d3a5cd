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

	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/layout"
)

// List is the file in Config.Etc that lists the files that install.sh created, one per line.
const List = "installed"

// SettingsRead is a file that the service writes at its start on install.sh's behalf: the checksum of its settings. It
// is not in List, because programs of other versions read List as well.
const SettingsRead = "/run/umiak-settings"

// Config describes what to remove.
type Config struct {
	Etc   string        // the folder of settings, with List in it
	Nodes []layout.Dirs // all nodes that have run with these settings, see NodesOf
	// Keep leaves the data directories, and the settings but for List.
	Keep bool
	// Cleanup removes what a node put on the machine, once it is stopped, and its data if purge is set.
	Cleanup func(ctx context.Context, node layout.Dirs, purge bool) error
	Command func(context.Context, string, ...string) error // runs a program of the init system
	// SettingsRead is the file of that name; empty if there is none.
	SettingsRead string
	Out          io.Writer
}

// NodesOf returns the directories of all nodes that have run with the settings in etc: the one that they name now, and
// those that datadisk has recorded, whatever named them then.
func NodesOf(etc string, settings layout.Dirs) ([]layout.Dirs, error) {
	all := []layout.Dirs{settings}
	notes, err := datadisk.Read(etc)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		if n.DataDir != filepath.Clean(settings.Data) {
			all = append(all, layout.Dirs{Data: n.DataDir, Run: n.RunDir})
		}
	}
	return all, nil
}

// Plan returns the files and folders that Run removes. It changes nothing.
func Plan(cfg Config) ([]string, error) {
	if err := cfg.checkDisks(); err != nil {
		return nil, err
	}
	files, err := Read(cfg.Etc)
	if err != nil {
		return nil, err
	}
	for _, f := range slices.Clone(files) {
		files = append(files, links(f)...)
	}
	if cfg.Keep {
		return files, nil
	}
	files = append(files, cfg.Etc)
	for _, d := range cfg.Nodes {
		files = append(files, d.Data)
	}
	return files, nil
}

// checkDisks refuses to remove data where the disk that holds them is not mounted: keys would be left on it.
func (c Config) checkDisks() error {
	if c.Keep {
		return nil
	}
	for _, d := range c.Nodes {
		if err := datadisk.Check(c.Etc, d.Data); err != nil {
			return fmt.Errorf("keys and data would be left: %w: %s is not on the disk on which they were; mount that, or, if it is gone for good, remove %s and uninstall again",
				datadisk.ErrMissing, d.Data, filepath.Join(c.Etc, datadisk.File))
		}
	}
	return nil
}

// cleanup removes what the nodes put on the machine. An error with one node does not keep it from the others.
func (c Config) cleanup(ctx context.Context) error {
	var errs []error
	for _, d := range c.Nodes {
		errs = append(errs, c.Cleanup(ctx, d, !c.Keep))
	}
	if c.SettingsRead != "" {
		if err := os.Remove(c.SettingsRead); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// files are the base names of files that install.sh may create.
var files = []string{
	"umiak", "umiak-agent", "umiak.service", "umiak-agent.service", // programs, services, logrotate's settings
	"umiak.log", "umiak-agent.log", "umiak.log.1", "umiak-agent.log.1",
}

// links returns the links to a program that install.sh has made beside it. They are not in List, because programs of
// other versions read List as well.
func links(program string) (all []string) {
	for _, tool := range []string{"kubectl", "crictl", "ctr"} {
		link := filepath.Join(filepath.Dir(program), tool)
		if to, err := os.Readlink(link); err == nil && to == filepath.Base(program) {
			all = append(all, link)
		}
	}
	return all
}

// ErrNotInstalled means that List does not exist.
var ErrNotInstalled = errors.New(
	"umiak was not installed here by install.sh; a package is removed with the package manager, and `umiak cleanup --purge` removes what a node left")

// Read returns the files on List. An entry that install.sh does not write is an error, because the files are about to
// be removed.
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
			return nil, fmt.Errorf("line %d: %q is not a file that install.sh creates", i+1, line)
		}
		all = append(all, line)
	}
	return all, nil
}

// Run uninstalls. It stops at the first error, so that what another run needs still exists. It also stops when ctx
// ends, until the nodes are cleaned up; then it finishes.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.checkDisks(); err != nil {
		return err
	}
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
	if err := cfg.cleanup(ctx); err != nil {
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
	for _, p := range others { // including this program
		for _, l := range links(p) {
			if err := remove(cfg, l); err != nil {
				return err
			}
		}
		if err := remove(cfg, p); err != nil {
			return err
		}
	}
	return nil
}

func isSystemd(unit string) bool { return strings.HasSuffix(unit, ".service") }

// stop stops a service and disables it at boot. If its unit does not exist, an earlier run has stopped it.
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

// removeServiceCgroups removes the cgroups that OpenRC creates for a service and does not remove when it stops. rmdir
// fails for one with processes, which are not umiak's.
func removeServiceCgroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/openrc.%s", "/sys/fs/cgroup/unified/%s",
		"/sys/fs/cgroup/unified/openrc.%s", "/sys/fs/cgroup/openrc/%s"} {
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

// Command runs a command, for use as Config.Command. Its output becomes part of the error.
func Command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
