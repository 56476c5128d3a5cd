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

// Seed creates the directory of cfg as that of a cluster with one member, with the keys that keys passes to put. The
// keys keep their revisions; Lease in them is the TTL in seconds. The cluster continues at revision floor: a watch from
// below gets "compacted". The directory appears only when it is complete.
func Seed(ctx context.Context, cfg Config, floor int64, keys func(put func(*mvccpb.KeyValue) error) error) (err error) {
	fail := func(err error) error { return fmt.Errorf("move into etcd: %w", err) }
	if Exists(cfg.Dir) {
		return fail(fmt.Errorf("%s holds a member already", cfg.Dir))
	}
	staging := cfg.Dir + ".new"
	// an interrupted start leaves one
	if err := errors.Join(os.RemoveAll(staging), os.MkdirAll(staging, 0o700)); err != nil {
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
		PeerURLs: []string{u.String()}, InitialCluster: cfg.Name + "=" + u.String(), InitialClusterToken: cfg.Cluster,
		InitialMmapSize: 64 << 20,
	})
	if err != nil {
		return fail(err)
	}
	if err := syncAll(out); err != nil {
		return fail(err)
	}
	// A folder that an interrupted start left is renamed, not removed, in case it is something else.
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

// fill writes the keys into an empty backend, with their leases, compacted at floor.
func fill(ctx context.Context, be backend.Backend, floor int64,
	keys func(put func(*mvccpb.KeyValue) error) error) error {
	tx := be.BatchTx()
	tx.LockOutsideApply()
	defer tx.Unlock()
	for _, b := range []backend.Bucket{schema.Key, schema.Meta, schema.Lease, schema.Members, schema.MembersRemoved,
		schema.Cluster, schema.Auth, schema.AuthUsers, schema.AuthRoles, schema.Alarm} {
		tx.UnsafeCreateBucket(b)
	}
	leases := map[int64]int64{} // TTL in seconds to lease ID
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

// syncAll syncs every file and folder below dir to disk.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return atomicfile.SyncDir(path) // works for files too
	})
}
