// Package volatile is a revisioned key space in memory, for the Leases and Events of a single server: they need not
// survive a reboot, and on disk they would be most of what an idle cluster writes.
//
// It implements kine's Backend, like sqlite. kine's own memory driver is not used: its revisions begin at 1 after every
// start, it never compacts on its own, and it streams lists without holding its lock.
//
// Revisions begin at a base that the caller raises with every start, so a resourceVersion from before a restart is
// older than every revision here, and a watch from it gets "compacted". History beyond keepRevisions or keepBytes is
// dropped without a request.
//
// The package imports kine's server interface and datastore/internal/hub and ttl. Package datastore calls it.
package volatile

import (
	"context"
	"log/slog"
	"sync"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/tidwall/btree"

	"github.com/umiak-io/umiak/datastore/internal/hub"
	"github.com/umiak-io/umiak/datastore/internal/ttl"
)

// The history is cut to these limits once it exceeds twice one of them.
const (
	keepRevisions = 4096
	keepBytes     = 8 << 20 // keys and values of the history, the newest included
)

var _ server.Backend = (*Store)(nil)

// Store is the key space. New creates one.
type Store struct {
	hub *hub.Hub
	ttl *ttl.Expirer

	mu       sync.RWMutex
	keys     *btree.Map[string, *record] // newest record of each key, tombstones included until compacted
	log      []*record                   // every revision above compact, in order
	current  int64
	compact  int64
	logBytes int64 // of the records in log
	live     int64 // bytes of the current keys and values
	count    int64 // current keys
}

// record is one revision of one key. It is immutable except for prev, which compaction clears.
type record struct {
	rev, create, version, lease int64
	deleted                     bool
	key                         string
	value                       []byte
	prev                        *record
}

func (r *record) kv(keysOnly bool) *server.KeyValue {
	kv := &server.KeyValue{Key: r.key, Value: r.value, Version: r.version, CreateRevision: r.create, ModRevision: r.rev,
		Lease: r.lease}
	if keysOnly {
		kv.Value = nil
	}
	return kv
}

func (r *record) size() int64 { return int64(len(r.key) + len(r.value)) }

// at returns the newest record of the key at a revision, or nil.
func (r *record) at(revision int64) *record {
	for r != nil && r.rev > revision {
		r = r.prev
	}
	return r
}

// New returns an empty store whose newest revision is base.
func New(base int64, log *slog.Logger) *Store {
	s := &Store{keys: btree.NewMap[string, *record](32), current: base, compact: base}
	s.hub = hub.New(s)
	s.ttl = ttl.New(func(ctx context.Context, key string, rev int64) error {
		_, _, _, err := s.Delete(ctx, key, rev)
		return err
	}, log)
	return s
}

// Run expires leased keys until ctx ends.
func (s *Store) Run(ctx context.Context) { s.ttl.Run(ctx) }

// Start implements server.Backend. It does nothing; see Run.
func (s *Store) Start(context.Context) error { return nil }

// Revisions returns the newest and the compact revision.
func (s *Store) Revisions() (current, compact int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.current, s.compact
}

// CurrentRevision returns the newest revision.
func (s *Store) CurrentRevision(context.Context) (int64, error) {
	current, _ := s.Revisions()
	return current, nil
}

// Len returns the number of keys.
func (s *Store) Len() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.count
}

// DbSize returns the bytes of keys and values, including the history.
func (s *Store) DbSize(context.Context) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.live + s.logBytes, nil
}

// put appends r after latest, the newest record of the key or nil. The caller holds mu for writing.
func (s *Store) put(r *record, latest *record) {
	s.current++
	r.rev, r.prev = s.current, latest
	if r.create == 0 {
		r.create = r.rev
	}
	if latest != nil && !latest.deleted {
		s.live -= latest.size()
		s.count--
	}
	if !r.deleted {
		s.live += r.size()
		s.count++
	}
	s.keys.Set(r.key, r)
	s.log = append(s.log, r)
	s.logBytes += r.size()
	lease := r.lease
	if r.deleted {
		lease = 0
	}
	s.ttl.Set(r.key, r.rev, lease)
	e := event(r, s.compact) // before compaction clears r.prev
	if len(s.log) > 2*keepRevisions || s.logBytes > 2*keepBytes {
		cut, bytes := 0, s.logBytes
		for cut < len(s.log)-1 && (len(s.log)-cut > keepRevisions || bytes > keepBytes) {
			bytes -= s.log[cut].size()
			cut++
		}
		s.compactTo(s.log[cut].rev)
	}
	s.hub.Publish([]*server.Event{e}, s.current)
}

// event returns the event of a record, with its predecessor unless that is compacted.
func event(r *record, compact int64) *server.Event {
	e := &server.Event{Create: r.create == r.rev, Delete: r.deleted, KV: r.kv(r.deleted)}
	if r.prev != nil && !r.prev.deleted && r.prev.rev >= compact {
		e.PrevKV = r.prev.kv(false)
	}
	return e
}

// Create writes a key that does not exist, else it returns server.ErrKeyExists. lease is the TTL in seconds, 0 for
// none.
func (s *Store) Create(_ context.Context, key string, value []byte, lease int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	latest, _ := s.keys.Get(key)
	if latest != nil && !latest.deleted {
		return s.current, server.ErrKeyExists
	}
	s.put(&record{key: key, value: value, version: 1, lease: lease}, latest)
	return s.current, nil
}

// Update replaces the value of a key if the key is at the revision; else it returns the current key and false.
func (s *Store) Update(_ context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue,
	bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	latest, _ := s.keys.Get(key)
	if latest == nil || latest.deleted {
		return s.current, nil, false, nil
	}
	if latest.rev != revision {
		return s.current, latest.kv(false), false, nil
	}
	r := &record{key: key, value: value, create: latest.create, version: latest.version + 1, lease: lease}
	s.put(r, latest)
	return s.current, r.kv(false), true, nil
}

// Delete removes a key if it is at the revision or the revision is 0; else it returns the current key and false.
func (s *Store) Delete(_ context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	latest, _ := s.keys.Get(key)
	if latest == nil || latest.deleted {
		return s.current, nil, revision == 0, nil
	}
	if revision != 0 && latest.rev != revision {
		return s.current, latest.kv(false), false, nil
	}
	s.put(&record{key: key, create: latest.create, deleted: true}, latest)
	return s.current, latest.kv(false), true, nil
}

// Get returns a key at a revision, 0 for the newest, or nil.
func (s *Store) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	var out *server.KeyValue
	rev, err := s.scan(key, "", 1, revision, func(r *record) { out = r.kv(keysOnly) })
	return rev, out, err
}

// List returns the keys from key up to but without end at a revision. An empty end means key alone; if both are
// empty, all keys.
func (s *Store) List(_ context.Context, key, end string, limit, revision int64, keysOnly bool) (int64,
	[]*server.KeyValue, error) {
	var out []*server.KeyValue
	rev, err := s.scan(key, end, limit, revision, func(r *record) { out = append(out, r.kv(keysOnly)) })
	return rev, out, err
}

// ListStream is List with the keys on a channel.
func (s *Store) ListStream(ctx context.Context, key, end string, limit, revision int64,
	keysOnly bool) server.ListResult {
	kvs, errs := make(chan *server.KeyValue), make(chan error, 1)
	rev, list, err := s.List(ctx, key, end, limit, revision, keysOnly)
	if err != nil {
		errs <- err
	}
	go func() {
		defer close(errs)
		defer close(kvs)
		for _, kv := range list {
			select {
			case kvs <- kv:
			case <-ctx.Done():
				errs <- ctx.Err()
				return
			}
		}
	}()
	return server.ListResult{CurrentRevision: rev, KVc: kvs, Errorc: errs}
}

// Count returns the number of keys that List would return.
func (s *Store) Count(_ context.Context, key, end string, revision int64) (int64, int64, error) {
	var n int64
	rev, err := s.scan(key, end, 0, revision, func(*record) { n++ })
	return rev, n, err
}

// scan visits the keys of List, at most limit of them (0: all), and returns the newest revision.
func (s *Store) scan(key, end string, limit, revision int64, visit func(*record)) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case revision <= 0:
		revision = s.current
	case revision > s.current:
		return s.current, server.ErrFutureRev
	case revision < s.compact:
		return s.current, server.ErrCompacted
	}
	if end == "" && key != "" {
		if r, ok := s.keys.Get(key); ok {
			if r = r.at(revision); r != nil && !r.deleted {
				visit(r)
			}
		}
		return s.current, nil
	}
	var n int64
	s.keys.Ascend(key, func(k string, r *record) bool {
		if end != "" && end != "\x00" && k >= end {
			return false
		}
		if r = r.at(revision); r != nil && !r.deleted {
			visit(r)
			n++
		}
		return limit <= 0 || n < limit
	})
	return s.current, nil
}

// Watch returns the events from a revision on.
func (s *Store) Watch(ctx context.Context, revision int64) server.WatchResult {
	return s.hub.Watch(ctx, revision)
}

// Hub returns the hub that delivers the events of the store.
func (s *Store) Hub() *hub.Hub { return s.hub }

// History implements hub.Source.
func (s *Store) History(_ context.Context, from, to int64, limit int) (out []*server.Event, more bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if from < s.compact {
		return nil, false, server.ErrCompacted
	}
	if len(s.log) == 0 {
		return nil, false, nil
	}
	for i := max(from-s.log[0].rev, 0); i < int64(len(s.log)) && s.log[i].rev <= to; i++ {
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, event(s.log[i], s.compact))
	}
	return out, false, nil
}

// Compact drops the history before a revision.
func (s *Store) Compact(_ context.Context, revision int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case revision > s.current:
		return 0, server.ErrFutureRev
	case revision <= s.compact:
		return 0, server.ErrCompacted
	}
	s.compactTo(revision)
	return s.current, nil
}

// compactTo drops the history below revision. The revision itself stays readable and watchable.
func (s *Store) compactTo(revision int64) {
	cut := 0
	for ; cut < len(s.log) && s.log[cut].rev <= revision; cut++ {
		r := s.log[cut]
		r.prev = nil
		if r.rev == revision {
			break
		}
		if r.deleted {
			if latest, ok := s.keys.Get(r.key); ok && latest == r {
				s.keys.Delete(r.key)
			}
		}
		s.logBytes -= r.size()
	}
	rest := make([]*record, len(s.log)-cut, max(len(s.log)-cut, 64))
	copy(rest, s.log[cut:])
	s.log, s.compact = rest, revision
}
