package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
)

const (
	// revisionJump is added to the revision of the snapshot. Clients may have seen revisions after the snapshot; the
	// revisions that they see next must be newer, so that they list again.
	revisionJump = 1 << 32
	// epochJump does the same for the store in memory. It bounds the number of starts since the snapshot.
	epochJump = 1 << 10

	// EpochBits is the width of the range of revisions that the store in memory has for one start of the process, an
	// epoch. With 36 bits, 2^17 starts stay below 2^53, the largest integer that JSON readers can represent.
	EpochBits = 36
)

// Restored is the result of Restore.
type Restored struct {
	Info
	// Kept is the folder with the former state, empty if there was none.
	Kept string `json:"kept,omitempty"`
}

// Restore replaces the folder of a server with a snapshot. The caller has locked the data directory. The whole file is
// read and verified first; then the new folder takes the place of the old one in one step. The old folder is renamed
// and stays beside it. The restored datastore is SQLite, whatever the backend of the snapshot was. passphrase is
// empty for a snapshot that is not encrypted. The new folder also gets the files of also.
func Restore(ctx context.Context, path, passphrase string, dirs layout.Dirs, log *slog.Logger, also ...File) (_ Restored, err error) {
	outside, err := Inspect(path)
	if err != nil {
		return Restored{}, err
	}
	staging := dirs.Server() + ".restoring"
	if err := os.RemoveAll(staging); err != nil { // an interrupted attempt leaves one
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staging))
		}
	}()
	info, err := stage(ctx, path, passphrase, outside, staging, also)
	if err != nil {
		return Restored{}, err
	}
	kept, err := exchange(staging, dirs.Server(), time.Now())
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := moveSnapshots(kept, dirs.Server()); err != nil {
		log.Warn("cannot move the snapshots out of the old folder, they stay there", "kept", kept, "error", err)
	}
	return Restored{Info: info, Kept: kept}, nil
}

// stage creates the new folder of the server in dir, with the files of also. outside is the result of Inspect.
func stage(ctx context.Context, path, passphrase string, outside Info, dir string, also []File) (info Info, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	var files []File
	at := sqlite.Imported{
		Floor: outside.Revision + revisionJump,
		Epoch: max(outside.Epoch, outside.Revision>>EpochBits+1) + epochJump,
	}
	err = sqlite.Import(ctx, filepath.Join(dir, "db"), at, func(put func(*mvccpb.KeyValue) error) error {
		var err error
		info, err = Read(path, passphrase, Visitor{
			File: func(f File) error { files = append(files, f); return nil },
			Key: func(kv *mvccpb.KeyValue) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return put(kv)
			},
		})
		return err
	})
	if err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	cluster, err := Cluster(files)
	if err != nil {
		return info, fmt.Errorf("restore %s: %w: %w", path, ErrAltered, err)
	}
	if cluster != info.Cluster {
		return info, fmt.Errorf("restore %s: %w: its server CA is not that of the cluster in its manifest", path,
			ErrAltered)
	}
	for _, f := range files {
		if !mayRestore(f.Name) {
			return info, fmt.Errorf("restore %s: %w: it holds a file %q, which is no file of a snapshot", path, ErrAltered,
				f.Name)
		}
	}
	for _, f := range slices.Concat(files, also) {
		to := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return info, fmt.Errorf("restore: %w", err)
		}
		if err := atomicfile.Write(to, f.Data, f.Mode); err != nil {
			return info, fmt.Errorf("restore: %w", err)
		}
	}
	return info, syncTree(dir)
}

// syncTree syncs all folders from dir on to disk; the files are synced already.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return atomicfile.SyncDir(path)
	})
}

// exchange replaces current with staged and returns the path to which it moved the former folder, empty if there was
// none.
func exchange(staged, current string, now time.Time) (kept string, err error) {
	parent := filepath.Dir(current)
	if _, err := os.Stat(current); errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(os.Rename(staged, current), atomicfile.SyncDir(parent))
	}
	for i := 0; ; i++ {
		kept = current + ".before-restore-" + now.UTC().Format("20060102T150405Z")
		if i > 0 {
			kept += fmt.Sprintf("-%d", i)
		}
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	// The new folder first gets the name under which the old one is going to stay, because nothing ever removes a
	// folder of that name, should the power fail. Then the two are exchanged in one step, so that a server that
	// starts finds one or the other.
	if err := os.Rename(staged, kept); err != nil {
		return "", err
	}
	switch err := unix.Renameat2(unix.AT_FDCWD, kept, unix.AT_FDCWD, current, unix.RENAME_EXCHANGE); {
	case err == nil:
		return kept, atomicfile.SyncDir(parent)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return "", errors.Join(fmt.Errorf("exchange %s and %s: %w", kept, current, err), os.Rename(kept, staged))
	}
	// The file system does not support RENAME_EXCHANGE.
	if err := errors.Join(os.Rename(kept, staged), os.Rename(current, kept)); err != nil {
		return "", err
	}
	if err := os.Rename(staged, current); err != nil {
		return "", errors.Join(err, os.Rename(kept, current))
	}
	return kept, atomicfile.SyncDir(parent)
}

// moveSnapshots moves the folder of snapshots, by default a subfolder of the server's folder, into the new one.
func moveSnapshots(kept, server string) error {
	if kept == "" {
		return nil
	}
	err := os.Rename(filepath.Join(kept, "snapshots"), filepath.Join(server, "snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
