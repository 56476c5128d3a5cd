package etcd

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
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Seed makes the directory of cfg, as that of a cluster of one member, with the keys that keys yields. They
// keep their revisions, and leases of their seconds. The cluster goes on at the floor: watches from below
// hear that their revision is compacted. The directory appears only when it is complete.
func Seed(ctx context.Context, cfg Config, floor int64, keys func(put func(*mvccpb.KeyValue) error) error) (err error) {
	fail := func(err error) error { return fmt.Errorf("move into etcd: %w", err) }
	if Exists(cfg.Dir) {
		return fail(fmt.Errorf("%s holds a member already", cfg.Dir))
	}
	staging := cfg.Dir + ".new"
	if err := errors.Join(os.RemoveAll(staging), os.MkdirAll(staging, 0o700)); err != nil { // of a start that was broken off
		return fail(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staging))
		}
	}()
	lg := zapLogger(cfg.Log.With(slog.String("step", "seed")), make(chan error, 1), nil)
	db := filepath.Join(staging, "keys.db")
	be := backend.NewDefaultBackend(lg, db, backend.WithMmapSize(64<<20))
	err = fill(ctx, be, floor, keys)
	be.ForceCommit()
	if err := errors.Join(err, be.Close()); err != nil {
		return fail(err)
	}
	u := peerURL(cfg.Peer)
	out := filepath.Join(staging, "out")
	err = snapshot.NewV3(lg).Restore(snapshot.RestoreConfig{
		SnapshotPath: db, SkipHashCheck: true, Name: cfg.Name, OutputDataDir: out,
		PeerURLs: []string{u.String()}, InitialCluster: cfg.Name + "=" + u.String(), InitialClusterToken: cfg.Cluster, InitialMmapSize: 64 << 20,
	})
	if err != nil {
		return fail(err)
	}
	if err := syncAll(out); err != nil {
		return fail(err)
	}
	// What a start that was broken off has left is kept, not removed: it might not be that.
	if err := os.Remove(cfg.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(cfg.Dir, cfg.Dir+".incomplete-"+time.Now().UTC().Format("20060102T150405Z")); err != nil {
			return fail(err)
		}
	}
	if err := errors.Join(os.Rename(out, cfg.Dir), atomicfile.SyncDir(filepath.Dir(cfg.Dir))); err != nil {
		return fail(err)
	}
	return os.RemoveAll(staging)
}

func fill(ctx context.Context, be backend.Backend, floor int64, keys func(put func(*mvccpb.KeyValue) error) error) error {
	tx := be.BatchTx()
	tx.LockOutsideApply()
	defer tx.Unlock()
	for _, b := range []backend.Bucket{schema.Key, schema.Meta, schema.Lease, schema.Members, schema.MembersRemoved, schema.Cluster, schema.Auth, schema.AuthUsers, schema.AuthRoles, schema.Alarm} {
		tx.UnsafeCreateBucket(b)
	}
	leases := map[int64]int64{} // seconds to lease
	err := keys(func(kv *mvccpb.KeyValue) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if kv.ModRevision > floor {
			return fmt.Errorf("the key %q has revision %d, which is above %d", kv.Key, kv.ModRevision, floor)
		}
		if kv.Lease > 0 {
			id, ok := leases[kv.Lease]
			if !ok {
				id = int64(len(leases)) + 1
				leases[kv.Lease] = id
				schema.MustUnsafePutLease(tx, &leasepb.Lease{ID: id, TTL: kv.Lease})
			}
			kv = proto.Clone(kv).(*mvccpb.KeyValue)
			kv.Lease = id
		}
		value, err := proto.Marshal(kv)
		if err != nil {
			return err
		}
		tx.UnsafePut(schema.Key, mvcc.RevToBytes(mvcc.Revision{Main: kv.ModRevision}, mvcc.NewRevBytes()), value)
		return nil
	})
	if err != nil {
		return err
	}
	mvcc.UnsafeSetScheduledCompact(tx, floor)
	mvcc.UnsafeSetFinishedCompact(tx, floor)
	return nil
}

// syncAll makes sure that everything below dir is on the disk.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return atomicfile.SyncDir(path) // also right for files: it opens and syncs
	})
}
