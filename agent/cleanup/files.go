package cleanup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/internal/listing"
)

// removeFiles removes what upstream code writes to fixed paths outside the node's directories.
func (c *cleaner) removeFiles(context.Context) error {
	return errors.Join(c.removeShimSockets(), c.removeCNIResults(), c.removeLogLinks(), c.removeRecordedPaths())
}

// removeShimSockets removes the sockets of shims, whose addresses are in their bundles.
func (c *cleaner) removeShimSockets() error {
	bundles, err := listing.Match(filepath.Join(c.Dirs.ContainerdState(), "io.containerd.runtime.v2.task"), "*", "*")
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range bundles {
		for _, socket := range shimSockets(b) {
			st, err := os.Lstat(socket)
			if err != nil || st.Mode()&fs.ModeSocket == 0 {
				continue
			}
			if err := os.Remove(socket); err != nil {
				errs = append(errs, err)
				continue
			}
			c.printf("removed socket %s", socket)
		}
	}
	return errors.Join(errs...)
}

func shimSockets(bundle string) []string {
	var addresses []string
	if raw, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json")); err == nil {
		var b struct {
			Address string `json:"address"`
		}
		if json.Unmarshal(raw, &b) == nil {
			addresses = append(addresses, b.Address)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
		addresses = append(addresses, string(bytes.TrimSpace(raw)))
	}
	var out []string
	for _, a := range addresses {
		if p, ok := strings.CutPrefix(a, "unix://"); ok && filepath.IsAbs(p) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// removeCNIResults removes the CNI library's cached results of this node's pods, which it identifies by the state
// directory in the cached configuration.
func (c *cleaner) removeCNIResults() error {
	files, err := filepath.Glob("/var/lib/cni/results/umiak-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || !isOwnResult(raw, c.Dirs.CNIState()) {
			continue
		}
		if err := os.Remove(f); err != nil {
			errs = append(errs, err)
			continue
		}
		c.printf("removed %s", f)
	}
	for _, d := range []string{"/var/lib/cni/results", "/var/lib/cni"} {
		_ = os.Remove(d) // if empty
	}
	return errors.Join(errs...)
}

// isOwnResult reports whether a cached CNI result was created with this state directory.
func isOwnResult(raw []byte, state string) bool {
	var r struct {
		Config []byte `json:"config"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return false
	}
	return bytes.Contains(r.Config, []byte(fmt.Sprintf("%q", state)))
}

// removeLogLinks removes the kubelet's links to this node's logs.
func (c *cleaner) removeLogLinks() error {
	const dir = "/var/log/containers"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	n := 0
	wasMade := slices.Contains(c.made(host.KindPath), dir)
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		target, err := os.Readlink(p)
		if err != nil || !c.isOwnLog(target, wasMade) {
			continue
		}
		if err := os.Remove(p); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	if n > 0 {
		c.printf("removed %d links from %s", n, dir)
	}
	return errors.Join(errs...)
}

// isOwnLog reports whether a link in a folder of log links points to a log of this node. A dangling link counts if this
// node created the folder.
func (c *cleaner) isOwnLog(target string, madeFolder bool) bool {
	if strings.HasPrefix(target, c.Dirs.PodLogs()+"/") {
		return true
	}
	rest, ok := strings.CutPrefix(target, folders.PodLogs+"/")
	if !ok {
		return false
	}
	if _, err := os.Lstat(filepath.Join(c.Dirs.PodLogs(), rest)); err == nil {
		return true
	}
	_, err := os.Stat(target)
	return madeFolder && errors.Is(err, fs.ErrNotExist)
}

// removeRecordedPaths removes the paths in the journal, which did not exist before.
func (c *cleaner) removeRecordedPaths() error {
	var errs []error
	recorded := c.made(host.KindPath)
	slices.SortFunc(recorded, func(a, b string) int { return len(b) - len(a) }) // deepest first
	for _, p := range recorded {
		if used, err := c.usedElsewhere(p); err != nil || used {
			errs = append(errs, err)
			continue
		}
		err := removeRecorded(p)
		switch {
		case errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST):
			continue // others have put files into it
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
			continue
		case err == nil:
			c.printf("removed %s", p)
			if p == "/etc/cni/net.d" {
				_ = os.Remove(filepath.Dir(p)) // if empty
			}
		}
		errs = append(errs, c.gone(host.KindPath, p))
	}
	return errors.Join(errs...)
}

// usedElsewhere reports whether another node on this machine, in another mount namespace, has a mount at the path and
// would lose it with the path.
func (c *cleaner) usedElsewhere(p string) (bool, error) {
	for _, f := range folders.Of(c.Dirs) {
		if f.At == p {
			return host.MountedElsewhere(f.At, f.Data)
		}
	}
	return false, nil
}

// removeRecorded removes a file, or a folder that is empty except for the kubelet's own files.
func removeRecorded(p string) error {
	if filepath.Base(p) == "device-plugins" {
		for _, f := range []string{"kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"} {
			if err := os.Remove(filepath.Join(p, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(p)
}
