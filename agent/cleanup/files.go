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

// removeFiles removes what upstream code writes to fixed places outside the node's directories.
func (c *cleaner) removeFiles(context.Context) error {
	return errors.Join(c.removeShimSockets(), c.removeCNIResults(), c.removeLogLinks(), c.removeNotedPaths())
}

// removeShimSockets removes the sockets of shims, whose addresses stand in their bundles.
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
			c.say("removed socket %s", socket)
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

// removeCNIResults removes the results that the CNI library keeps of each pod, told by the state
// directory in the configuration beside them.
func (c *cleaner) removeCNIResults() error {
	files, err := filepath.Glob("/var/lib/cni/results/umiak-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || !ourResult(raw, c.Dirs.CNIState()) {
			continue
		}
		if err := os.Remove(f); err != nil {
			errs = append(errs, err)
			continue
		}
		c.say("removed %s", f)
	}
	for _, d := range []string{"/var/lib/cni/results", "/var/lib/cni"} {
		_ = os.Remove(d) // if empty
	}
	return errors.Join(errs...)
}

// ourResult says whether a cached CNI result was made with this state directory.
func ourResult(raw []byte, state string) bool {
	var r struct {
		Config []byte `json:"config"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return false
	}
	return bytes.Contains(r.Config, []byte(fmt.Sprintf("%q", state)))
}

// removeLogLinks removes the links to this node's logs that the kubelet keeps for log collectors.
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
		if err != nil || !c.ourLog(target, wasMade) {
			continue
		}
		if err := os.Remove(p); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	if n > 0 {
		c.say("removed %d links from %s", n, dir)
	}
	return errors.Join(errs...)
}

// ourLog reports whether a link in a folder of log links leads to a log of this node. A link that leads nowhere is this
// node's where the folder is.
func (c *cleaner) ourLog(target string, folderIsOurs bool) bool {
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
	return folderIsOurs && errors.Is(err, fs.ErrNotExist)
}

// removeNotedPaths removes paths that were not there before: the kubelet's fixed ones.
func (c *cleaner) removeNotedPaths() error {
	var errs []error
	noted := c.made(host.KindPath)
	slices.SortFunc(noted, func(a, b string) int { return len(b) - len(a) }) // what lies deeper first
	for _, p := range noted {
		if used, err := c.usedElsewhere(p); err != nil || used {
			errs = append(errs, err)
			continue
		}
		err := removeNoted(p)
		switch {
		case errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST):
			continue // somebody else's things are in it by now
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
			continue
		case err == nil:
			c.say("removed %s", p)
			if p == "/etc/cni/net.d" {
				_ = os.Remove(filepath.Dir(p)) // if empty
			}
		}
		errs = append(errs, c.gone(host.KindPath, p))
	}
	return errors.Join(errs...)
}

// usedElsewhere reports whether another node on this machine, in a mount namespace of its own, would lose what it shows
// at a place with the place.
func (c *cleaner) usedElsewhere(p string) (bool, error) {
	for _, f := range folders.Of(c.Dirs) {
		if f.At == p {
			return host.MountedElsewhere(f.At, f.Data)
		}
	}
	return false, nil
}

// removeNoted removes a file, or a folder with nothing in it but what the kubelet puts there itself.
func removeNoted(p string) error {
	if filepath.Base(p) == "device-plugins" {
		for _, f := range []string{"kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"} {
			if err := os.Remove(filepath.Join(p, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.Remove(p)
}
