package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
)

// Delete removes snapshots from the folder and from the bucket. A name is one that List returns, without its place. In
// the bucket, which other clusters may share, only this cluster's snapshots are removed. It returns what it removed, also
// when it returns an error.
func (c Config) Delete(ctx context.Context, d layout.Dirs, names ...string) (removed []string, err error) {
	for _, name := range names {
		if name != filepath.Base(name) || !strings.HasSuffix(name, snapshot.Suffix) {
			return nil, fmt.Errorf("delete snapshot: %q is not the name of a snapshot, which ends in %s; `umiak snapshot list` shows them",
				name, snapshot.Suffix)
		}
	}
	var there []snapshot.Entry
	var cluster string
	var b bucket
	if c.S3.On() {
		if cluster, err = c.cluster(d); err != nil {
			return nil, err
		}
		if there, err = remote(ctx, c.open, c.S3.URI()); err != nil {
			return nil, fmt.Errorf("delete snapshot: %w", err)
		}
		if b, err = c.open(); err != nil {
			return nil, err
		}
	}
	var errs []error
	for _, name := range names {
		var gone []string
		before := len(errs)
		file := filepath.Join(c.Folder(d), name)
		switch err := os.Remove(file); {
		case err == nil:
			_ = os.Remove(mark(file)) // a mark without a file is removed by the next upload as well
			gone = append(gone, file)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("delete snapshot: %w", err))
			continue
		}
		for _, e := range there {
			if path.Base(e.Path) != name {
				continue
			}
			if e.Cluster != cluster {
				errs = append(errs, fmt.Errorf("delete snapshot: %s is another cluster's, or was not uploaded by umiak", e.Path))
			} else if err := b.Remove(ctx, name); err != nil {
				errs = append(errs, err)
			} else {
				gone = append(gone, e.Path)
			}
		}
		if removed = append(removed, gone...); len(gone) == 0 && len(errs) == before {
			errs = append(errs, fmt.Errorf("delete snapshot: there is no %s; `umiak snapshot list` shows what there is", name))
		}
	}
	return removed, errors.Join(errs...)
}

// cluster returns the identity of this server's cluster, which stands in the description of each of its snapshots.
func (c Config) cluster(d layout.Dirs) (string, error) {
	files, err := snapshot.Files(d.Server())
	if err != nil {
		return "", fmt.Errorf("read this cluster's identity: %w", err)
	}
	id, err := snapshot.Cluster(files)
	if err != nil {
		return "", fmt.Errorf("read this cluster's identity: %w", err)
	}
	return id, nil
}
