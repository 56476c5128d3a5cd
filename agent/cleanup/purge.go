package cleanup

import (
	"context"
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

// dataEntries matches what umiak creates in the data directory. If that is a disk, it may hold other files.
var dataEntries = names(`lock|mark|node-name|\.node-name\..+|agent|server|server\..+|\.restore.*|\.umiak-.*`)

// stateFolders are the folders of the data directory with umiak's own state, which purge removes even if they are
// mounts, with the names of what umiak, containerd and the kubelet create in them. Everything else that is mounted in
// the data directory (snapshots on a share, manifests from a checkout) belongs to the user.
var stateFolders = map[string]*regexp.Regexp{
	"agent": names(
		`bundle|cni|containerd|images|kubelet|logs|pki|pod-manifests|upgrade|volume-plugins|node-password|no-network-policies|.+\.json|.+\.kubeconfig`),
	"agent/containerd": names(`io\.containerd\..+|tmpmounts|images\.json`),
	"agent/kubelet": names(
		`pods.*|plugins|plugins_registry|pod-resources|device-plugins|checkpoints|image_manager|userns.*|.+_state|.+_checkpoint`),
	"agent/kubelet/pods": names(`[0-9a-f-]{32,36}`),
	"agent/logs":         names(`pods`),
	"agent/logs/pods":    names(`[^_]+_[^_]+_[0-9a-f-]{32,36}`),
	"agent/pki":          names(`.+\.(crt|key|pem)`),
	"server": names(
		`db|pki|kubeconfigs|manifests|snapshots|token|agent-token|reset-restored|.+\.yaml|.+\.json|.+\.kubeconfig`),
	"server/db":  names(`lock|state\.db.*|etcd|etcd\..+|sqlite-before-etcd-.+|broken-.+`),
	"server/pki": names(`.+\.(crt|key|pem)`),
}

// names matches a whole name, or the name of a temporary file that a kill has left behind (internal/atomicfile).
func names(expr string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + expr + `|\..+\.tmp)$`)
}

// purge removes the data directory. If it is a link or a mount point, purge empties it. File systems mounted in it are
// left alone, unless they hold a folder of umiak's state and nothing else.
func (c *cleaner) purge(ctx context.Context, dir string) error {
	return c.removeTree(ctx, dir, dataEntries)
}

// removeTree removes a directory, or only those of its entries that match own, if own is not nil. It does not enter
// mounts below, except state folders that hold nothing else; the error lists what prevents the removal.
func (c *cleaner) removeTree(ctx context.Context, dir string, own *regexp.Regexp) error {
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
		return fmt.Errorf("%s is a link to %s, which does not exist; mount its disk and run this again", dir, target)
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
		errs = append(errs, c.purgeApart(ctx, t, strings.TrimPrefix(m, real+"/"), m, "a mount"))
	}
	for _, rel := range slices.Backward(slices.Sorted(maps.Keys(stateFolders))) {
		p := filepath.Join(real, rel)
		if st, err := os.Lstat(p); err != nil || st.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if to, err := filepath.EvalSymlinks(p); err == nil && !strings.HasPrefix(to, real+"/") {
			behind, err := treeAt(to)
			if err == nil {
				err = c.purgeApart(ctx, behind, rel, to, "behind the link "+p)
			}
			errs = append(errs, err)
		}
	}
	left, err := t.remove(ctx, real, own)
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
		c.printf("removed %s", dir)
		return nil
	}
	c.printf("emptied %s, which stays because %s", dir, stays)
	return nil
}

// tree is a directory with the mounts in it.
type tree struct {
	root   string
	mounts []string // deepest first
}

// newTree returns the tree at root with the mounts in all that still exist, deepest first.
func newTree(root string, all []*mountinfo.Info) tree {
	t := tree{root: root}
	for _, m := range all {
		if !host.Deleted(m) && !slices.Contains(t.mounts, m.Mountpoint) {
			t.mounts = append(t.mounts, m.Mountpoint)
		}
	}
	return t
}

// treeAt returns the tree of a folder.
func treeAt(root string) (tree, error) {
	_, below, err := host.Mounts(root)
	if err != nil {
		return tree{}, err
	}
	return newTree(root, below), nil
}

// around reports whether there is a mount below a path.
func (t tree) around(path string) bool {
	return slices.ContainsFunc(t.mounts, func(m string) bool { return strings.HasPrefix(m, path+"/") })
}

// remove removes the entries of a directory that match own (nil: all), except mounts and what is in them. It returns
// the names of the remaining entries.
func (t tree) remove(ctx context.Context, dir string, own *regexp.Regexp) (left []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch {
		case slices.Contains(t.mounts, p), own != nil && !own.MatchString(e.Name()):
			left = append(left, e.Name())
		case t.around(p):
			more, err := t.remove(ctx, p, nil)
			errs = append(errs, err)
			for _, m := range more {
				left = append(left, filepath.Join(e.Name(), m))
			}
		default:
			levels := interruptDepth
			if !e.IsDir() { // also a link to a folder
				levels = 0
			}
			if err := removeAll(ctx, p, levels); err != nil {
				errs = append(errs, err)
			}
			if ctx.Err() != nil {
				return left, errors.Join(errs...)
			}
		}
	}
	return left, errors.Join(errs...)
}

// interruptDepth is how many levels of folders removeAll removes entry by entry. Images and volumes, which take long,
// are not deeper; what pods can write to is.
const interruptDepth = 5

// removeAll removes a path with all below it. It ends with ctx, between two folders of the upper levels. With levels
// above 0 the path must be a folder.
func removeAll(ctx context.Context, path string, levels int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if levels > 0 {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeAll(ctx, filepath.Join(path, e.Name()), levels-1); err != nil {
					return err
				}
			}
		}
	}
	return os.RemoveAll(path)
}

// purgeApart empties a folder of the data directory that is a mount or behind a link, if it is a state folder and holds
// nothing else.
func (c *cleaner) purgeApart(ctx context.Context, t tree, rel, dir, how string) error {
	own := stateFolders[rel]
	if own == nil {
		c.printf("kept %s, which is %s", dir, how)
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var others []string
	for _, e := range entries {
		if e.Name() != "lost+found" && !own.MatchString(e.Name()) {
			others = append(others, e.Name())
		}
	}
	if len(others) > 0 {
		return fmt.Errorf(
			"%s is %s and holds files that are not umiak's (%s): remove umiak's files, move it out of the data directory, and run this again", dir, how, strings.Join(others, ", "))
	}
	if _, err := t.remove(ctx, dir, own); err != nil {
		return err
	}
	c.printf("emptied %s, which stays because it is %s", dir, how)
	return nil
}
