package cleanup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/umiak-io/umiak/agent/host"
)

// ofData are the names of what umiak makes in the data directory: where that is a disk, others may have theirs on it.
var ofData = names(`lock|mark|node-name|\.node-name\..+|agent|server|server\..+|\.restore.*|\.umiak-.*`)

// state are the folders of the data directory that hold umiak's own state, which purge promises to remove also where
// they are mounts, with the names of what umiak, containerd and the kubelet make in them. All else that is mounted in
// the data directory (snapshots on a share, manifests from a checkout) is the user's.
var state = map[string]*regexp.Regexp{
	"agent":              names(`bundle|cni|containerd|images|kubelet|logs|pki|pod-manifests|upgrade|volume-plugins|node-password|no-network-policies|.+\.json|.+\.kubeconfig`),
	"agent/containerd":   names(`io\.containerd\..+|tmpmounts|images\.json`),
	"agent/kubelet":      names(`pods.*|plugins|plugins_registry|pod-resources|device-plugins|checkpoints|image_manager|userns.*|.+_state|.+_checkpoint`),
	"agent/kubelet/pods": names(`[0-9a-f-]{32,36}`),
	"agent/logs":         names(`pods`),
	"agent/logs/pods":    names(`[^_]+_[^_]+_[0-9a-f-]{32,36}`),
	"agent/pki":          names(`.+\.(crt|key|pem)`),
	"server":             names(`db|pki|kubeconfigs|manifests|snapshots|token|agent-token|.+\.yaml|.+\.json|.+\.kubeconfig`),
	"server/db":          names(`lock|state\.db.*|etcd|etcd\..+|sqlite-before-etcd-.+|broken-.+`),
	"server/pki":         names(`.+\.(crt|key|pem)`),
}

// names matches a whole name, or that of a file which a kill has kept from getting it (internal/atomicfile).
func names(expr string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + expr + `|\..+\.tmp)$`)
}

// purge removes the data directory. Where that is a link or a mount, it is emptied and stays, and what lies on file
// systems that are mounted in it is left alone, unless they hold a folder of ours and nothing else.
func (c *cleaner) purge(dir string) error {
	return c.removeTree(dir, ofData)
}

// removeTree removes a directory, or those of its entries that are named as ours are, if ours is given. It never goes
// into what is mounted below but where that is a folder with nothing but our things; an error names what of ours is
// left for it.
func (c *cleaner) removeTree(dir string, ours *regexp.Regexp) error {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		target, _ := os.Readlink(dir)
		return fmt.Errorf("%s is a link to %s, which is not there; mount the disk that it is on and run this again", dir, target)
	}
	if err != nil {
		return err
	}
	if st, err := os.Stat(real); err != nil || !st.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is not a directory", dir))
	}
	at, below, err := host.Mounts(real)
	if err != nil {
		return err
	}
	t := newTree(real, below)
	var errs []error
	for _, m := range t.mounts {
		errs = append(errs, c.purgeApart(t, strings.TrimPrefix(m, real+"/"), m, "a mount"))
	}
	for _, rel := range slices.Backward(slices.Sorted(maps.Keys(state))) {
		p := filepath.Join(real, rel)
		if st, err := os.Lstat(p); err != nil || st.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if to, err := filepath.EvalSymlinks(p); err == nil && !strings.HasPrefix(to, real+"/") {
			behind, err := treeAt(to)
			if err == nil {
				err = c.purgeApart(behind, rel, to, "behind the link "+p)
			}
			errs = append(errs, err)
		}
	}
	left, err := t.remove(real, ours)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var stays string
	switch {
	case len(left) > 0:
		stays = "it holds " + strings.Join(left, ", ")
	case st.Mode()&fs.ModeSymlink != 0:
		stays = "it is a link to " + real
	case len(at) > 0:
		stays = "it is a mount"
	default:
		if err := os.Remove(real); err != nil {
			return err
		}
		c.say("removed %s", dir)
		return nil
	}
	c.say("emptied %s, which stays because %s", dir, stays)
	return nil
}

// tree is a directory with file systems mounted in it.
type tree struct {
	root   string
	mounts []string // deepest first
}

// newTree returns the tree at root with the mounts among all, deepest first, that are still there.
func newTree(root string, all []*mountinfo.Info) tree {
	t := tree{root: root}
	for _, m := range all {
		if !host.Deleted(m) && !slices.Contains(t.mounts, m.Mountpoint) {
			t.mounts = append(t.mounts, m.Mountpoint)
		}
	}
	return t
}

// treeAt looks up what is mounted in a folder.
func treeAt(root string) (tree, error) {
	_, below, err := host.Mounts(root)
	if err != nil {
		return tree{}, err
	}
	return newTree(root, below), nil
}

// around reports whether something is mounted below a path.
func (t tree) around(path string) bool {
	return slices.ContainsFunc(t.mounts, func(m string) bool { return strings.HasPrefix(m, path+"/") })
}

// remove removes what is in a directory and named as ours is (nil: everything), but no mount and nothing in one. It
// returns the names of what is left.
func (t tree) remove(dir string, ours *regexp.Regexp) (left []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch {
		case slices.Contains(t.mounts, p), ours != nil && !ours.MatchString(e.Name()):
			left = append(left, e.Name())
		case t.around(p):
			more, err := t.remove(p, nil)
			errs = append(errs, err)
			for _, m := range more {
				left = append(left, filepath.Join(e.Name(), m))
			}
		default:
			errs = append(errs, os.RemoveAll(p))
		}
	}
	return left, errors.Join(errs...)
}

// purgeApart empties a folder of the data directory that lies elsewhere (as a mount, or behind a link), if it is one of
// ours and holds nothing else.
func (c *cleaner) purgeApart(t tree, rel, dir, how string) error {
	ours := state[rel]
	if ours == nil {
		c.say("kept %s, which is %s", dir, how)
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var others []string
	for _, e := range entries {
		if e.Name() != "lost+found" && !ours.MatchString(e.Name()) {
			others = append(others, e.Name())
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("%s is %s and holds more than what umiak put there (%s): remove from it what is to go, take it out of the data directory, and run this again", dir, how, strings.Join(others, ", "))
	}
	if _, err := t.remove(dir, ours); err != nil {
		return err
	}
	c.say("emptied %s, which stays because it is %s", dir, how)
	return nil
}
