package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

const (
	// revisionJump is added to the snapshot's revision. Clients may have seen what was written after the
	// snapshot; what they see next must be newer, so that they list anew.
	revisionJump = 1 << 32
	// epochJump does the same for what is kept in memory: so many starts there may have been since.
	epochJump = 1 << 10
	// epochBits is how many revisions an epoch has; see package datastore.
	epochBits = 36
)

// Restored tells what Restore did.
type Restored struct {
	Info
	// Kept is the folder with what was there before, empty if nothing was.
	Kept string `json:"kept,omitempty"`
}

// Restore puts a snapshot in the place of a server's folder. The data directory must not be in use. All of
// the file is read and verified first; then the new folder takes the place of the old one in one step, and
// the old one is kept beside it. What is restored is a SQLite datastore, whatever it was before.
func Restore(ctx context.Context, path, passphrase string, dirs layout.Dirs, log *slog.Logger) (_ Restored, err error) {
	release, err := instance.Acquire(dirs)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	defer release()
	outside, err := Inspect(path)
	if err != nil {
		return Restored{}, err
	}
	staging := dirs.Server() + ".restoring"
	if err := os.RemoveAll(staging); err != nil { // of an attempt that was broken off
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staging))
		}
	}()
	info, err := stage(ctx, path, passphrase, outside, staging)
	if err != nil {
		return Restored{}, err
	}
	kept, err := exchange(staging, dirs.Server(), time.Now())
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	if err := bringSnapshots(kept, dirs.Server()); err != nil {
		log.Warn("the snapshots stayed in the folder that was kept", "kept", kept, "err", err)
	}
	return Restored{Info: info, Kept: kept}, nil
}

// stage makes the folder as it is going to be.
func stage(ctx context.Context, path, passphrase string, outside Info, dir string) (info Info, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	var files []File
	at := sqlite.Imported{
		Floor: outside.Revision + revisionJump,
		Epoch: max(outside.Epoch, outside.Revision>>epochBits+1) + epochJump,
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
		return info, fmt.Errorf("restore %s: %w: it is not of the cluster that it names", path, ErrAltered)
	}
	for _, f := range files {
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

func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return atomicfile.SyncDir(path)
	})
}

// exchange puts staged in the place of current and returns where what was there is kept.
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
	// The new folder goes under the name of the one that is kept first: whatever a power cut leaves there,
	// nobody removes it. Then both change places in one step, so that a server that starts finds one or the
	// other.
	if err := os.Rename(staged, kept); err != nil {
		return "", err
	}
	switch err := unix.Renameat2(unix.AT_FDCWD, kept, unix.AT_FDCWD, current, unix.RENAME_EXCHANGE); {
	case err == nil:
		return kept, atomicfile.SyncDir(parent)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return "", errors.Join(fmt.Errorf("exchange %s and %s: %w", kept, current, err), os.Rename(kept, staged))
	}
	// A file system that cannot exchange.
	if err := errors.Join(os.Rename(kept, staged), os.Rename(current, kept)); err != nil {
		return "", err
	}
	if err := os.Rename(staged, current); err != nil {
		return "", errors.Join(err, os.Rename(kept, current))
	}
	return kept, atomicfile.SyncDir(parent)
}

// bringSnapshots moves the folder of snapshots, which lies in the server's folder by default, over.
func bringSnapshots(kept, server string) error {
	if kept == "" {
		return nil
	}
	err := os.Rename(filepath.Join(kept, "snapshots"), filepath.Join(server, "snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
