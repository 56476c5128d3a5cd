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

// absent is a recorded archive that is not in the folder.
type absent struct {
	record
	removed bool // false: its file system may not be mounted
}

// absent returns the recorded archives that are not in the folder. An archive counts as removed only if the folder is
// on the same file system as when it was imported; otherwise a disk may be missing. A record without a file system,
// from an older version, counts as removed if the folder is not empty.
func (i *Importer) absent() (map[string]absent, error) {
	entries, err := os.ReadDir(i.cfg.Dir)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	all := maps.Clone(i.records)
	i.mu.Unlock()
	out, still := map[string]absent{}, map[string]bool{"": len(entries) > 0}
	for name, k := range all {
		if !i.isRemoved(name) {
			continue
		}
		if _, asked := still[k.Place]; !asked {
			still[k.Place] = mounted.Still(i.cfg.Dir, k.Place)
		}
		out[name] = absent{k, still[k.Place]}
	}
	return out, nil
}

func (i *Importer) isRemoved(name string) bool {
	_, err := os.Lstat(filepath.Join(i.cfg.Dir, name))
	return errors.Is(err, fs.ErrNotExist)
}

// forgetRemoved unpins the images of archives that were removed from the folder, unless another archive contains them.
// While the folder does not exist or is on another file system, and for dangling links, a disk may be missing: those
// archives do not count as removed.
func (i *Importer) forgetRemoved(ctx context.Context, c *client.Client) {
	missing, err := i.absent()
	if err != nil {
		return // the folder does not exist
	}
	i.mu.Lock()
	maps.DeleteFunc(i.status, func(name string, _ *Status) bool { return name != i.cfg.Dir && i.isRemoved(name) })
	gone := map[string]record{}
	for name, a := range missing {
		if !a.removed {
			i.status[name] = i.missingDiskStatus(name, a.record)
			continue
		}
		if k, still := i.records[name]; still && i.isRemoved(name) {
			gone[name] = k
			delete(i.records, name)
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
	err = saveState(i.cfg.State, i.records)
	i.mu.Unlock()
	if err != nil {
		i.cfg.Log.Warn("save the import records", "error", err)
	}
	for name := range gone {
		i.lists.forget(name)
		i.cfg.Log.Info("image archive or list is gone, its images are left to garbage collection", "file", name)
	}
}

// missingDiskStatus is the status of an archive that may be on a disk that is not mounted.
func (i *Importer) missingDiskStatus(name string, k record) *Status {
	names := slices.Sorted(maps.Keys(k.Images))
	return &Status{File: name, State: Waiting, Images: names,
		Error: fmt.Sprintf("it is not in %s, and the file system that it was on is not mounted there; "+
			"its images stay pinned until it is back; to remove them: umiak ctr images rm %s", i.cfg.Dir,
			strings.Join(names, " "))}
}

// forgetImage removes an image that was deleted from the store from the records of absent archives, which cannot
// restore it.
func (i *Importer) forgetImage(image string) {
	missing, err := i.absent()
	if err != nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range missing {
		k, ok := i.records[name]
		if _, has := k.Images[image]; !ok || !has {
			continue
		}
		k.Images = maps.Clone(k.Images) // other goroutines may read the map
		if delete(k.Images, image); len(k.Images) > 0 {
			i.records[name] = k
			continue
		}
		delete(i.records, name)
		delete(i.status, name)
	}
	if err := saveState(i.cfg.State, i.records); err != nil {
		i.cfg.Log.Warn("save the import records", "error", err)
	}
}
