package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// exportPage is the number of keys that Export reads in one transaction.
const exportPage = 1000

// Export visits every key as of a revision, in key order. Writers are not blocked. Lease in the visited keys is the
// TTL in seconds.
func (s *Store) Export(ctx context.Context, rev int64, visit func(*mvccpb.KeyValue) error) error {
	for key, end := "\x00", "\x00"; ; {
		_, kvs, err := s.List(ctx, key, end, exportPage, rev, false)
		if err != nil {
			return fmt.Errorf("read keys from %q on: %w", key, err)
		}
		for _, kv := range kvs {
			if err := visit(&mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, CreateRevision: kv.CreateRevision,
				ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease}); err != nil {
				return err
			}
		}
		if len(kvs) < exportPage {
			return nil
		}
		key = kvs[len(kvs)-1].Key + "\x00"
	}
}

// Imported is where the revisions of an imported file begin.
type Imported struct {
	// Floor is the revision of the new store: history below is compacted, and no revision below is assigned again. It
	// must not be below that of any key.
	Floor int64
	// Epoch is the number of past starts.
	Epoch int64
}

// Import creates a file with the keys that keys passes to put, in a folder that has none. The keys keep their
// revisions; if several have the same one, as etcd allows, the later ones get new revisions.
func Import(ctx context.Context, dir string, at Imported, keys func(put func(*mvccpb.KeyValue) error) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("import into %s: %w", dir, classify(err))
	}
	path := File(dir)
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("import into %s: there is a datastore already", dir)
	}
	err := create(ctx, path, func(c *sql.Conn) error {
		put, err := c.PrepareContext(ctx, insertRow)
		if err != nil {
			return err
		}
		defer put.Close() //nolint:errcheck // Exec has the error
		insert := func(r *row) error {
			r.sum = r.checksum()
			_, err := put.ExecContext(ctx, r.rev, r.key, r.create, r.prev, r.version, r.lease, r.flags, r.sum, r.value)
			return err
		}
		taken := map[int64]bool{}
		var later []*row
		err = keys(func(kv *mvccpb.KeyValue) error {
			r := &row{rev: kv.ModRevision, key: kv.Key, create: kv.CreateRevision, version: kv.Version, lease: kv.Lease,
				value: kv.Value}
			if taken[r.rev] {
				later = append(later, r)
				return nil
			}
			if r.rev > at.Floor {
				return fmt.Errorf("the key %q has revision %d, which is above %d", r.key, r.rev, at.Floor)
			}
			taken[r.rev] = true
			return insert(r)
		})
		if err != nil {
			return err
		}
		for _, r := range later {
			at.Floor++
			r.rev = at.Floor
			if err := insert(r); err != nil {
				return err
			}
		}
		_, err = c.ExecContext(ctx, `UPDATE meta SET value = CASE name
			WHEN 'floor' THEN ? WHEN 'compact' THEN ? WHEN 'swept' THEN ? WHEN 'epoch' THEN ? END`,
			at.Floor, at.Floor, at.Floor, at.Epoch)
		return err
	})
	if err != nil {
		return fmt.Errorf("import into %s: %w", dir, err)
	}
	return nil
}
