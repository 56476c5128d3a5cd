package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/umiak-io/umiak/datastore/internal/hub"
	"github.com/umiak-io/umiak/datastore/internal/ttl"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/listing"
)

// File returns the path of the database in a folder.
func File(dir string) string { return filepath.Join(dir, "state.db") }

// Options are the parameters of Open.
type Options struct {
	Dir        string // created if it is missing
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// Failing, if not nil, is called with true when writes begin to fail, and with false when they work again; it must
	// not block.
	Failing func(bool)

	synchronous string // empty: FULL; tests set OFF, to be faster or to see the power-cut test fail
}

// Store is an open database. Open creates it and Close ends it.
type Store struct {
	path string
	log  *slog.Logger
	lock func() // releases the lock of the folder; nil if it is not held

	writeDB *sql.DB // has one connection, that of writer
	readers *sql.DB
	writer  *writer
	hub     *hub.Hub
	ttl     *ttl.Expirer
	metrics *metrics

	current atomic.Int64 // newest acknowledged revision
	compact atomic.Int64 // revision below which history is not readable
	swept   atomic.Int64 // revision up to which compacted rows are removed
	epoch   int64
	jump    bool // revisions that clients have seen are lost: connect continues revisionJump above

	gate      sync.RWMutex // readers hold it shared; held exclusively to empty the write-ahead log
	sweepWake chan struct{}

	stmtMu sync.Mutex
	stmts  map[string]*sql.Stmt

	statusMu  sync.Mutex
	integrity Integrity
	recovery  *Recovery

	failure failure

	stop  chan struct{}
	close sync.Once
}

// Open locks the folder, checks the file, recovers it if it is damaged, and makes it ready for reads and writes. Its
// errors wrap one of the Err variables of this package where one fits.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if o.synchronous == "" {
		o.synchronous = "FULL"
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open datastore %s: %w", o.Dir, classify(err))
	}
	s := &Store{path: File(o.Dir), log: o.Log, sweepWake: make(chan struct{}, 1), stmts: map[string]*sql.Stmt{},
		failure: failure{notify: o.Failing}, stop: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open datastore %s: %w", o.Dir, errors.Join(classify(err), s.closeFiles()))
		}
	}()
	if s.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	if err := s.prepareFile(ctx); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, o.synchronous); err != nil {
		if !isDamage(err) {
			return nil, err
		}
		if err := s.recover(ctx, err); err != nil {
			return nil, err
		}
		if err := s.connect(ctx, o.synchronous); err != nil {
			return nil, err
		}
	}
	s.hub = hub.New(s)
	s.ttl = ttl.New(func(ctx context.Context, key string, rev int64) error {
		_, _, _, err := s.Delete(ctx, key, rev)
		return err
	}, o.Log)
	s.metrics = newMetrics(s, o.Registerer)
	if err := s.seedLeases(ctx); err != nil {
		s.metrics.unregister()
		return nil, err
	}
	go s.writer.run(s.stop)
	return s, nil
}

// lockDir takes the lock of the folder. The error is ErrLocked if another process holds it.
func lockDir(dir string) (release func(), err error) {
	release, err = filelock.Try(filepath.Join(dir, "lock"))
	if errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("%w: stop the other server or give this one its own --data-dir", ErrLocked)
	}
	return release, err
}

// prepareFile creates the file if there is none. Otherwise it checks the header, whether this version can open the
// file, and looks for damage of the write-ahead log.
func (s *Store) prepareFile(ctx context.Context) error {
	if err := finishRecovery(s.path, s.log); err != nil {
		return err
	}
	if s.recovery == nil {
		report, err := lastRecovery(filepath.Dir(s.path))
		if err != nil {
			s.log.Warn("the datastore was recovered, and the report on it cannot be read", "error", err)
		}
		s.recovery = report
	}
	st, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		kept, err := listing.Match(filepath.Dir(s.path), "broken-*", "state.db")
		if err != nil {
			return err
		}
		if len(kept) > 0 {
			return fmt.Errorf("%w: state.db is gone but %s is there: put a state.db back, or remove the broken-* "+
				"folders to start empty", ErrDamaged, kept[len(kept)-1])
		}
		if _, err := os.Stat(s.path + "-wal"); err == nil {
			return fmt.Errorf("%w: state.db is gone but state.db-wal is there", ErrDamaged)
		}
		return create(ctx, s.path, nil)
	}
	if err != nil {
		return err
	}
	h, err := readHeader(s.path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return err
	case err != nil:
		return s.recover(ctx, fmt.Errorf("%w: %d bytes: %w", ErrDamaged, st.Size(), err))
	case h.applicationID != applicationID:
		return fmt.Errorf("state.db is %w: its application id is %#x", ErrForeign, h.applicationID)
	case h.userVersion > schemaVersion:
		return fmt.Errorf("state.db is %w: it has format %d, this program knows %d", ErrNewer, h.userVersion,
			schemaVersion)
	}
	return s.inspectWAL()
}

// connect opens the connections, which applies the write-ahead log, checks the file and reads its revisions.
func (s *Store) connect(ctx context.Context, synchronous string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.disconnect())
		}
	}()
	if s.writeDB, err = sql.Open("sqlite", dsn(s.path, "journal_mode(WAL)", "synchronous("+synchronous+")",
		fmt.Sprintf("wal_autocheckpoint(%d)", autoCheckpoint),
		fmt.Sprintf("journal_size_limit(%d)", journalLimit), "cache_size(-4000)")); err != nil {
		return err
	}
	s.writeDB.SetMaxOpenConns(1)
	conn, err := s.writeDB.Conn(ctx)
	if err != nil {
		return err
	}
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("the file system does not allow a write-ahead log (journal mode %q)", mode)
	}
	if err := s.check(ctx, conn); err != nil {
		return err
	}
	var top, floor, compact, swept int64
	if err := conn.QueryRowContext(ctx, `SELECT coalesce(max(rev), 0) FROM log`).Scan(&top); err != nil {
		return err
	}
	if err := conn.QueryRowContext(ctx, `SELECT (SELECT value FROM meta WHERE name = 'floor'),
		(SELECT value FROM meta WHERE name = 'compact'),
		(SELECT value FROM meta WHERE name = 'swept')`).Scan(&floor, &compact, &swept); err != nil {
		return fmt.Errorf("%w: meta: %w", ErrDamaged, err)
	}
	if s.jump {
		floor = max(top, floor) + revisionJump
		if _, err := conn.ExecContext(ctx, `UPDATE meta SET value = ? WHERE name IN ('floor', 'compact')`,
			floor); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		compact, s.jump = floor, false
	}
	s.current.Store(max(top, floor))
	s.compact.Store(compact)
	s.swept.Store(swept)
	// This is the only write at a start. It also proves that the disk takes writes.
	if err := conn.QueryRowContext(ctx,
		`UPDATE meta SET value = value + 1 WHERE name = 'epoch' RETURNING value`).Scan(&s.epoch); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if s.readers, err = sql.Open("sqlite", dsn(s.path, "query_only(1)", "cache_size(-1000)")); err != nil {
		return err
	}
	s.readers.SetMaxOpenConns(4)
	s.readers.SetMaxIdleConns(4)
	s.writer, err = newWriter(ctx, s, conn)
	return err
}

// seedLeases sets a new deadline for every leased key.
func (s *Store) seedLeases(ctx context.Context) error {
	rows, err := s.readers.QueryContext(ctx, `SELECT l.key, l.rev, l.lease FROM log l WHERE l.lease > 0
		AND NOT EXISTS (SELECT 1 FROM log n WHERE n.key = l.key AND n.rev > l.rev)`)
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	defer rows.Close() //nolint:errcheck // Err has the error
	for rows.Next() {
		var key []byte
		var rev, lease int64
		if err := rows.Scan(&key, &rev, &lease); err != nil {
			return fmt.Errorf("read leases: %w", err)
		}
		s.ttl.Set(string(key), rev, lease)
	}
	return rows.Err()
}

// Epoch returns the number of times that this file has been opened, including this time.
func (s *Store) Epoch() int64 { return s.epoch }

// Run does the background work (expiry, removal of compacted rows, the rest of the check of a large file) until ctx
// ends.
func (s *Store) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){s.ttl.Run, s.sweeper, s.checkRest} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(ctx)
		}()
	}
	wg.Wait()
}

// Close ends the writer, copies the write-ahead log into the file and releases the folder. Writes that are not
// committed get an error.
func (s *Store) Close() (err error) {
	s.close.Do(func() {
		close(s.stop)
		<-s.writer.done
		s.metrics.unregister()
		err = s.closeFiles()
	})
	return err
}

func (s *Store) closeFiles() error {
	err := s.disconnect()
	if s.lock != nil {
		s.lock()
		s.lock = nil
	}
	return err
}

// disconnect closes all connections. It leaves the fields set, so that their users get an error.
func (s *Store) disconnect() error {
	if s.writeDB == nil {
		return nil
	}
	var errs []error
	s.stmtMu.Lock()
	clear(s.stmts)
	s.stmtMu.Unlock()
	if s.readers != nil {
		errs = append(errs, s.readers.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	errs = append(errs, s.writeDB.Close()) // closing the last connection empties the write-ahead log
	s.writeDB = nil
	return errors.Join(errs...)
}

// Integrity is the result of the last check.
type Integrity struct {
	At    time.Time `json:"at"`
	Scope string    `json:"scope"` // part of the file that was checked
	Error string    `json:"error,omitempty"`
}

// Status is the state of the store.
type Status struct {
	Path            string    `json:"path"`
	FileBytes       int64     `json:"fileBytes"`
	WALBytes        int64     `json:"walBytes"`
	Revision        int64     `json:"revision"`
	CompactRevision int64     `json:"compactRevision"`
	SweptRevision   int64     `json:"sweptRevision"` // behind CompactRevision while rows are being removed
	Leased          int       `json:"leased"`
	Integrity       Integrity `json:"integrity"`
	// the newest one whose broken-* folder still exists; nil if none
	Recovery  *Recovery `json:"recovery,omitempty"`
	LastError string    `json:"lastError,omitempty"` // why writes fail; empty if they do not
}

// Status returns the current state.
func (s *Store) Status() Status {
	st := Status{Path: s.path, Revision: s.current.Load(), CompactRevision: s.compact.Load(),
		SweptRevision: s.swept.Load(), Leased: s.ttl.Len()}
	st.FileBytes, st.WALBytes = s.sizes()
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	st.Integrity, st.Recovery, st.LastError = s.integrity, s.recovery, s.failure.text()
	return st
}
