package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/umiak-io/umiak/datastore/internal/hub"
)

var _ server.Backend = (*Store)(nil)

// streamPage is the number of keys that ListStream reads in one transaction.
const streamPage = 500

// Start implements server.Backend. It does nothing; see Run.
func (s *Store) Start(context.Context) error { return nil }

// Create writes a key that does not exist, else it returns server.ErrKeyExists. lease is the TTL in seconds, 0 for
// none.
func (s *Store) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	r := s.writer.submit(ctx, op{verb: createKey, key: []byte(key), value: value, lease: lease})
	return r.rev, r.err
}

// Update replaces the value of a key if the key is at the revision; else it returns the current key and false.
func (s *Store) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue,
	bool, error) {
	r := s.writer.submit(ctx, op{verb: updateKey, key: []byte(key), value: value, rev: revision, lease: lease})
	return r.rev, r.kv, r.ok, r.err
}

// Delete removes a key if it is at the revision or the revision is 0; else it returns the current key and false.
func (s *Store) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	r := s.writer.submit(ctx, op{verb: deleteKey, key: []byte(key), rev: revision})
	return r.rev, r.kv, r.ok, r.err
}

// Revisions returns the newest acknowledged revision and the one below which history is compacted.
func (s *Store) Revisions() (current, compact int64) { return s.current.Load(), s.compact.Load() }

// CurrentRevision returns the newest acknowledged revision.
func (s *Store) CurrentRevision(context.Context) (int64, error) { return s.current.Load(), nil }

// Watch returns the events from a revision on.
func (s *Store) Watch(ctx context.Context, revision int64) server.WatchResult {
	return s.hub.Watch(ctx, revision)
}

// read calls f with a revision, the newest one for 0, and returns the newest revision. A read of the newest revision is
// repeated if compaction has overtaken it.
func (s *Store) read(revision int64, f func(at int64) error) (int64, error) {
	for {
		current := s.current.Load()
		at := revision
		switch {
		case at <= 0:
			at = current
		case at > current:
			return current, server.ErrFutureRev
		case at < s.compact.Load():
			return current, server.ErrCompacted
		}
		s.gate.RLock()
		err := f(at)
		s.gate.RUnlock()
		if at < s.compact.Load() { // set before rows are removed, so f may have missed some
			if revision > 0 {
				return current, server.ErrCompacted
			}
			continue
		}
		if errors.Is(err, ErrDamaged) || isDamage(err) {
			s.failure.failed(s.log, err, 0)
		}
		return current, forClient(err)
	}
}

// isDamage reports whether err means that the file is damaged.
func isDamage(err error) bool { return err != nil && errors.Is(classify(err), ErrDamaged) }

// Get returns a key at a revision, 0 for the newest, or nil.
func (s *Store) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	var kv *server.KeyValue
	rev, err := s.read(revision, func(at int64) error {
		kv = nil
		cols := columns
		if !keysOnly {
			cols += ", l.sum, l.value"
		}
		rows, err := s.query(ctx, `SELECT `+cols+` FROM log l WHERE key = ? AND rev <= ? ORDER BY rev DESC LIMIT 1`,
			[]byte(key), at)
		if err != nil {
			return err
		}
		return each(rows, keysOnly, func(r *row) {
			if r.flags&deleted == 0 {
				kv = r.kv()
			}
		})
	})
	return rev, kv, err
}

// List returns the keys from key up to but without end at a revision. An empty end means key alone; if both are
// empty, all keys.
func (s *Store) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64,
	[]*server.KeyValue, error) {
	if end == "" && key != "" {
		rev, kv, err := s.Get(ctx, key, revision, keysOnly)
		if kv == nil {
			return rev, nil, err
		}
		return rev, []*server.KeyValue{kv}, err
	}
	var kvs []*server.KeyValue
	rev, err := s.read(revision, func(at int64) error {
		kvs = nil
		return s.list(ctx, key, end, limit, at, keysOnly, func(r *row) { kvs = append(kvs, r.kv()) })
	})
	return rev, kvs, err
}

// current returns the SQL that selects the newest row of each key in a range at a revision. It walks the index in key
// order, so a page of a long list reads only that page.
func current(key, end string, at int64) (where string, args []any) {
	where, args = ` FROM log l WHERE key >= ?`, []any{[]byte(key)}
	if end != "" && end != "\x00" {
		where, args = where+` AND key < ?`, append(args, []byte(end))
	}
	where += ` AND rev <= ? AND flags & 1 = 0
		AND NOT EXISTS (SELECT 1 FROM log n WHERE n.key = l.key AND n.rev > l.rev AND n.rev <= ?)`
	return where, append(args, at, at)
}

// list visits the keys of List.
func (s *Store) list(ctx context.Context, key, end string, limit, at int64, keysOnly bool, visit func(*row)) error {
	where, args := current(key, end, at)
	cols := columns
	if !keysOnly {
		cols += ", l.sum, l.value"
	}
	if limit <= 0 {
		limit = -1
	}
	rows, err := s.query(ctx, `SELECT `+cols+where+` ORDER BY key LIMIT ?`, append(args, limit)...)
	if err != nil {
		return err
	}
	return each(rows, keysOnly, visit)
}

// Count returns the number of keys that List would return.
func (s *Store) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	if end == "" && key != "" {
		end = key + "\x00"
	}
	var n int64
	rev, err := s.read(revision, func(at int64) error {
		where, args := current(key, end, at)
		rows, err := s.query(ctx, `SELECT count(*)`+where, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // Err has the error
		for rows.Next() {
			if err := rows.Scan(&n); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	return rev, n, err
}

// ListStream is List with the keys on a channel. It reads page by page at one revision, so that a slow client holds no
// transaction open and the write-ahead log can be emptied meanwhile.
func (s *Store) ListStream(ctx context.Context, key, end string, limit, revision int64,
	keysOnly bool) server.ListResult {
	kvs, errs := make(chan *server.KeyValue), make(chan error, 1)
	if revision <= 0 {
		revision = s.current.Load()
	}
	res := server.ListResult{CurrentRevision: s.current.Load(), KVc: kvs, Errorc: errs}
	go func() {
		defer close(errs)
		defer close(kvs)
		for left := limit; ; {
			page := int64(streamPage)
			if limit > 0 {
				page = min(page, left)
			}
			_, got, err := s.List(ctx, key, end, page, revision, keysOnly)
			if err != nil {
				errs <- err
				return
			}
			for _, kv := range got {
				select {
				case kvs <- kv:
				case <-ctx.Done():
					errs <- ctx.Err()
					return
				}
			}
			left -= int64(len(got))
			if int64(len(got)) < page || limit > 0 && left <= 0 || end == "" && key != "" {
				return
			}
			key = got[len(got)-1].Key + "\x00"
			if end == "" {
				end = "\x00"
			}
		}
	}()
	return res
}

// Hub returns the hub that delivers the events of the store.
func (s *Store) Hub() *hub.Hub { return s.hub }

// historyBytes bounds the bytes of values that History returns at once.
const historyBytes = 4 << 20

// History implements hub.Source.
func (s *Store) History(ctx context.Context, from, to int64, limit int) (events []*server.Event, more bool, err error) {
	compact := s.compact.Load()
	if from < compact {
		return nil, false, server.ErrCompacted
	}
	_, err = s.read(to, func(int64) error {
		events, more = nil, false
		bytes := 0
		rows, err := s.query(ctx, `SELECT `+columns+`, l.sum, l.value,
			p.create_rev, p.prev_rev, p.version, p.lease, p.flags, p.sum, p.value
			FROM log l LEFT JOIN log p ON p.rev = l.prev_rev
			WHERE l.rev >= ? AND l.rev <= ? ORDER BY l.rev LIMIT ?`, from, to, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // Err has the error
		for rows.Next() {
			if more = len(events) == limit || bytes > historyBytes; more {
				return nil
			}
			var r row
			var create, prev, version, lease, flags, sum sql.NullInt64
			var value []byte
			if err := rows.Scan(&r.rev, &r.key, &r.create, &r.prev, &r.version, &r.lease, &r.flags, &r.sum, &r.value,
				&create, &prev, &version, &lease, &flags, &sum, &value); err != nil {
				return err
			}
			if err := r.verify(); err != nil {
				return err
			}
			e := &server.Event{Create: r.create == r.rev, Delete: r.flags&deleted != 0, KV: r.kv()}
			if sum.Valid && flags.Int64&deleted == 0 && r.prev >= compact {
				p := row{rev: r.prev, key: r.key, create: create.Int64, prev: prev.Int64, version: version.Int64,
					lease: lease.Int64, flags: flags.Int64, sum: sum.Int64, value: value}
				if err := p.verify(); err != nil {
					return err
				}
				e.PrevKV = p.kv()
			}
			events = append(events, e)
			bytes += len(r.value) + len(value)
		}
		return rows.Err()
	})
	if from < s.compact.Load() {
		return nil, false, server.ErrCompacted
	}
	return events, more, err
}

// verify returns an error if the checksum of the row is wrong.
func (r *row) verify() error {
	if r.sum != r.checksum() {
		return fmt.Errorf("revision %d of %q: %w: the checksum does not match", r.rev, r.key, ErrDamaged)
	}
	return nil
}

// each visits the rows of a query for columns, with sum and value unless keysOnly. It returns an error that occurs on
// the way, so that an interrupted list is not taken for a complete one.
func each(rows *sql.Rows, keysOnly bool, visit func(*row)) error {
	defer rows.Close() //nolint:errcheck // Err has the error
	for rows.Next() {
		var r row
		dest := []any{&r.rev, &r.key, &r.create, &r.prev, &r.version, &r.lease, &r.flags}
		if !keysOnly {
			dest = append(dest, &r.sum, &r.value)
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		if !keysOnly {
			if err := r.verify(); err != nil {
				return err
			}
		}
		visit(&r)
	}
	return rows.Err()
}

// query runs a statement on one of the reading connections. Statements are prepared once per connection.
func (s *Store) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	q = strings.TrimSpace(q)
	s.stmtMu.Lock()
	st, ok := s.stmts[q]
	if !ok {
		var err error
		if st, err = s.readers.PrepareContext(ctx, q); err != nil {
			s.stmtMu.Unlock()
			return nil, err
		}
		s.stmts[q] = st // about a dozen, since the texts are constant
	}
	s.stmtMu.Unlock()
	return st.QueryContext(ctx, args...)
}

// DbSize returns the size of the file in bytes.
func (s *Store) DbSize(context.Context) (int64, error) {
	file, _ := s.sizes()
	return file, nil
}
