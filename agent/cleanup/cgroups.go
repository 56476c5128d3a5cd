package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/retry"
)

// podCgroups returns the cgroups of the pods that this node's kubelet knows, in all hierarchies.
func (c *cleaner) podCgroups() []string {
	pods, _ := os.ReadDir(filepath.Join(c.Dirs.Kubelet(), "pods"))
	names := map[string]bool{}
	for _, p := range pods {
		names["pod"+p.Name()] = true
		// As systemd slices: kubepods-besteffort-podUID_WITH_UNDERSCORES.slice
		names["pod"+strings.ReplaceAll(p.Name(), "-", "_")+".slice"] = true
	}
	if len(names) == 0 {
		return nil
	}
	var out []string
	_ = filepath.WalkDir(host.CgroupMount, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		name := d.Name()
		if i := strings.LastIndex(name, "-pod"); i >= 0 && strings.HasSuffix(name, ".slice") {
			name = name[i+1:]
		}
		if names[name] {
			out = append(out, path)
			return fs.SkipDir
		}
		return nil
	})
	return out
}

// removeCgroups removes the pods' cgroups and those in the journal, deepest first. Cgroups that others use stay.
func (c *cleaner) removeCgroups(ctx context.Context) error {
	var errs []error
	recorded := c.made(host.KindCgroup)
	if i := slices.IndexFunc(recorded, func(p string) bool { return strings.HasSuffix(p, "/kubepods.slice") }); i >= 0 {
		if _, err := os.Stat(recorded[i]); err == nil {
			if err := stopSlice(ctx, filepath.Base(recorded[i])); err != nil {
				errs = append(errs, err)
			} else {
				c.printf("stopped systemd unit %s", filepath.Base(recorded[i]))
			}
		}
	}
	for _, dir := range c.podCgroups() {
		errs = append(errs, c.removeCgroup(ctx, dir))
	}
	// kubepods is below the configured root, which was recorded before it.
	for _, dir := range slices.Backward(recorded) {
		if err := c.removeCgroup(ctx, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, c.gone(host.KindCgroup, dir))
	}
	return errors.Join(errs...)
}

// The kernel releases a cgroup a moment after its last process has been reaped, and cgroup v1 reports that nowhere.
const (
	cgroupTimeout = time.Second
	cgroupPause   = 25 * time.Millisecond
)

// removeCgroup removes a cgroup with those below it. One that other programs use stays.
func (c *cleaner) removeCgroup(ctx context.Context, root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		err := os.Remove(d)
		for end := time.Now().Add(cgroupTimeout); errors.Is(err, unix.EBUSY) && time.Now().Before(end); {
			if ended := retry.Sleep(ctx, cgroupPause); ended != nil {
				return ended
			}
			err = os.Remove(d)
		}
		if errors.Is(err, unix.EBUSY) {
			// This node's processes are dead: another kubelet or container engine uses the same root.
			c.printf("kept cgroup %s, which other programs use", root)
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup %s: %w", d, err)
		}
	}
	if len(dirs) > 0 {
		c.printf("removed cgroup %s", root)
	}
	return nil
}

// stopSlice makes systemd stop a slice and its units.
func stopSlice(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.StopUnitContext(ctx, name, "replace", done); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	select {
	case r := <-done:
		if r != "done" {
			return fmt.Errorf("stop %s: systemd reports %q", name, r)
		}
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", name, ctx.Err())
	}
	return nil
}
