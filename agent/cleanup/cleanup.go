package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

// Config describes what to clean up.
type Config struct {
	Dirs layout.Dirs
	// Purge also removes the data directory (the cluster's state, images, volumes, identity), and the machine's records
	// of it: the registry of nodes and, in Etc, the note of its disk.
	Purge bool
	// Etc is the folder of settings; empty if there is none.
	Etc string
	// Out receives one line per action.
	Out io.Writer
	// Also are the removal functions of parts that track their own changes to the machine.
	Also []func(context.Context) error
}

// ErrRunning means that umiak runs on the data directory.
var ErrRunning = errors.New("umiak is running; stop it first")

// systemFolders are folders that never belong to one node, even if they are given as its data or run directory.
var systemFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32",
	"/media", "/mnt", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin", "/usr/sbin",
	"/usr/share", "/var", "/var/lib", "/var/log",
	"/var/run", "/var/tmp"}

// Run cleans up. It continues after errors and returns all of them. When ctx ends it stops between two removals, with
// the cause among the errors; another Run removes what is still there.
func Run(ctx context.Context, cfg Config) error {
	for _, d := range []string{cfg.Dirs.Data, cfg.Dirs.Run} {
		// The following steps remove trees as root.
		if !filepath.IsAbs(d) || slices.Contains(systemFolders, filepath.Clean(d)) {
			return fmt.Errorf("refuse to clean %q: it is not a directory of one node", d)
		}
	}
	release := func() {}
	if _, err := os.Stat(cfg.Dirs.Data); err == nil {
		release, err = instance.Acquire(cfg.Dirs) // prevents a start meanwhile
		if errors.Is(err, instance.ErrTaken) {
			return fmt.Errorf("%w (%w)", ErrRunning, err)
		}
		if err != nil {
			return err
		}
	}
	defer release()

	c := &cleaner{Config: cfg}
	var errs []error
	j, err := host.OpenJournal(cfg.Dirs.NodeState())
	if err != nil {
		errs = append(errs, fmt.Errorf(
			"%w; remove the file to clean up without it (sysctls and cgroups then stay as they are)", err))
	}
	c.journal = j
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"stop pods", c.stopPods},
		{"remove mounts", c.removeMounts},
		{"remove network namespaces", c.removeNetns},
		{"remove interfaces", c.removeInterfaces},
		{"remove nftables tables", c.removeTables},
		{"remove what other parts made", c.also},
		{"remove cgroups", c.removeCgroups},
		{"remove files", c.removeFiles},
		{"restore sysctls", c.restoreSysctls},
		{"remove the run directory", c.removeRun},
	} {
		if err := step.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
	if cfg.Purge {
		if len(errs) > 0 {
			// Another attempt needs the journal in it.
			errs = append(errs, fmt.Errorf("%s is kept because not everything could be cleaned up", cfg.Dirs.Data))
		} else if err := c.purge(ctx, cfg.Dirs.Data); err != nil {
			errs = append(errs, fmt.Errorf("remove the data directory: %w", err))
		} else {
			errs = append(errs, c.forget()) // not before: what was not removed must be found again
		}
	}
	return errors.Join(errs...)
}

// forget removes the machine's records of the node.
func (c *cleaner) forget() error {
	err := instance.Registry(layout.Registry).Remove(c.Dirs)
	if c.Etc == "" {
		return err
	}
	return errors.Join(err, datadisk.Forget(c.Etc, c.Dirs.Data))
}

type cleaner struct {
	Config
	journal *host.Journal // nil if it is unreadable
	netns   map[inode]bool
}

func (c *cleaner) printf(format string, a ...any) { fmt.Fprintf(c.Out, format+"\n", a...) }

func (c *cleaner) made(k host.Kind) []string {
	if c.journal == nil {
		return nil
	}
	return c.journal.State().Made[k]
}

func (c *cleaner) gone(k host.Kind, name string) error {
	if c.journal == nil {
		return nil
	}
	return c.journal.Gone(k, name)
}

func (c *cleaner) also(ctx context.Context) error {
	var errs []error
	for _, f := range c.Also {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

func (c *cleaner) restoreSysctls(context.Context) error {
	if c.journal == nil {
		return nil
	}
	return c.journal.Restore(func(name, value string) { c.printf("restored %s = %s", name, value) })
}

func (c *cleaner) removeRun(ctx context.Context) error {
	return c.removeTree(ctx, c.Dirs.Run, nil)
}
