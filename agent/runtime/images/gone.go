package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"

	"github.com/umiak-io/umiak/internal/mounted"
)

// absent is a known archive that is not in the folder.
type absent struct {
	known
	proven bool // that somebody took it away
}

// absent returns the known archives that are not in the folder. Where the folder is on another file system than it was, a disk may be
// missing. Notes of versions that did not note the file system count as long as there is anything in the folder.
func (i *Importer) absent() (map[string]absent, error) {
	entries, err := os.ReadDir(i.cfg.Dir)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	all := maps.Clone(i.known)
	i.mu.Unlock()
	out, still := map[string]absent{}, map[string]bool{"": len(entries) > 0}
	for name, k := range all {
		if !i.isGone(name) {
			continue
		}
		if _, asked := still[k.Place]; !asked {
			still[k.Place] = mounted.Still(i.cfg.Dir, k.Place)
		}
		out[name] = absent{k, still[k.Place]}
	}
	return out, nil
}

func (i *Importer) isGone(name string) bool {
	_, err := os.Lstat(filepath.Join(i.cfg.Dir, name))
	return errors.Is(err, fs.ErrNotExist)
}

// forgetGone unpins the images of archives that were taken out of the folder, unless another brings them too. While the folder itself is
// not there or on another file system, and where a link leads nowhere, a disk may be missing: nothing is taken for gone then.
func (i *Importer) forgetGone(ctx context.Context, c *client.Client) {
	missing, err := i.absent()
	if err != nil {
		return // it is not there
	}
	i.mu.Lock()
	maps.DeleteFunc(i.status, func(name string, _ *Status) bool { return name != i.cfg.Dir && i.isGone(name) })
	gone := map[string]known{}
	for name, a := range missing {
		if !a.proven {
			i.status[name] = i.heldStatus(name, a.known)
			continue
		}
		if k, still := i.known[name]; still && i.isGone(name) {
			gone[name] = k
			delete(i.known, name)
		}
	}
	unclaimed := map[string]string{}
	for _, k := range gone {
		maps.Copy(unclaimed, i.unclaimed(k.imported))
	}
	i.mu.Unlock()
	if len(gone) == 0 {
		return
	}
	i.unpin(ctx, c, unclaimed)
	i.mu.Lock()
	err = saveState(i.cfg.State, i.known)
	i.mu.Unlock()
	if err != nil {
		i.cfg.Log.Warn("note what was imported", "error", err)
	}
	for name := range gone {
		i.cfg.Log.Info("image archive is gone, its images are left to garbage collection", "file", name)
	}
}

// heldStatus is that of an archive which may be on a disk that is not there.
func (i *Importer) heldStatus(name string, k known) *Status {
	names := slices.Sorted(maps.Keys(k.Images))
	return &Status{File: name, State: Waiting, Images: names, Error: fmt.Sprintf("it is not in %s, and the file system that it was on is not mounted there "+
		"either; its images stay pinned until it is there again; to give them up, umiak ctr images rm %s", i.cfg.Dir, strings.Join(names, " "))}
}

// giveUp notes that somebody has removed an image of archives which are not there: they cannot bring it back.
func (i *Importer) giveUp(image string) {
	missing, err := i.absent()
	if err != nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range missing {
		k, ok := i.known[name]
		if _, has := k.Images[image]; !ok || !has {
			continue
		}
		k.Images = maps.Clone(k.Images) // others may be reading it
		if delete(k.Images, image); len(k.Images) > 0 {
			i.known[name] = k
			continue
		}
		delete(i.known, name)
		delete(i.status, name)
	}
	if err := saveState(i.cfg.State, i.known); err != nil {
		i.cfg.Log.Warn("note what was imported", "error", err)
	}
}
