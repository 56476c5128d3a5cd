package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	maxBatch      = 512     // writes in one transaction
	maxBatchBytes = 4 << 20 // bytes of values in one transaction
)

// verb is the kind of a write.
type verb int

const (
	createKey verb = iota
	updateKey
	deleteKey
)

// op is one write.
type op struct {
	verb  verb
	key   []byte
	value []byte
	rev   int64 // the revision that the key must have; 0 with deleteKey means any
	lease int64
	done  chan result
}

// result is the outcome of an op.
type result struct {
	rev int64
	kv  *server.KeyValue // the key after an update, before a delete, or as it is if the write was refused
	ok  bool             // the write happened
	err error
}

// task is maintenance on the writing connection, between two batches.
type task struct {
	run  func(ctx context.Context, c *sql.Conn) error
	done chan error
}

// writer owns the only connection that changes the file.
type writer struct {
	s     *Store
	conn  *sql.Conn
	ops   chan op
	tasks chan task
	done  chan struct{}

	latest, insert *sql.Stmt
}

func newWriter(ctx context.Context, s *Store, conn *sql.Conn) (*writer, error) {
	w := &writer{s: s, conn: conn, ops: make(chan op, maxBatch), tasks: make(chan task), done: make(chan struct{})}
	var err error
	if w.latest, err = conn.PrepareContext(ctx,
		`SELECT `+columns+`, l.sum, l.value FROM log l WHERE key = ? ORDER BY rev DESC LIMIT 1`); err != nil {
		return nil, err
	}
	w.insert, err = conn.PrepareContext(ctx, insertRow)
	return w, err
}

func (w *writer) close() error {
	return errors.Join(w.latest.Close(), w.insert.Close(), w.conn.Close())
}

// run commits the waiting writes until stop is closed. Writes that arrive while a commit waits for the disk form the
// next batch (group commit).
func (w *writer) run(stop <-chan struct{}) {
	defer close(w.done)
	batch := make([]op, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case o := <-w.ops:
			batch = append(batch, o)
		default:
			select {
			case o := <-w.ops:
				batch = append(batch, o)
			case t := <-w.tasks:
				t.done <- t.run(context.Background(), w.conn)
				continue
			case <-stop:
				return
			}
		}
		for size := len(batch[0].value); len(batch) < maxBatch && size < maxBatchBytes; {
			select {
			case o := <-w.ops:
				batch = append(batch, o)
				size += len(o.value)
				continue
			default:
			}
			break
		}
		w.commit(batch)
		clear(batch) // releases the values
	}
}

// submit passes a write to the writer and waits for the result. Once the write is passed on, submit waits even if ctx
// ends: the caller must not get an error for a write that may have happened.
func (w *writer) submit(ctx context.Context, o op) result {
	o.done = make(chan result, 1)
	select {
	case w.ops <- o:
	case <-ctx.Done():
		return result{err: ctx.Err()}
	case <-w.done:
		return result{err: errClosed}
	}
	select {
	case r := <-o.done:
		return r
	case <-w.done:
		select {
		case r := <-o.done:
			return r
		default:
			return result{err: errClosed}
		}
	}
}

// do runs a maintenance task and returns its error.
func (w *writer) do(ctx context.Context, run func(context.Context, *sql.Conn) error) error {
	t := task{run: run, done: make(chan error, 1)}
	select {
	case w.tasks <- t:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.done:
		return errClosed
	}
	return <-t.done
}

var errClosed = errors.New("the datastore is closed")

// commit writes the batch in one transaction and answers. Either the whole batch is on disk, or none of it is and every
// caller gets the error.
func (w *writer) commit(batch []op) {
	ctx := context.Background() // a transaction is never interrupted
	begun := time.Now()
	results := make([]result, len(batch))
	current := w.s.current.Load()
	rows, events, err := w.write(ctx, batch, results, current)
	if err != nil {
		w.s.failure.failed(w.s.log, err, bytesOf(batch))
		err = forClient(err)
		for _, o := range batch {
			o.done <- result{rev: current, err: err}
		}
		return
	}
	if rows > 0 {
		w.s.failure.succeeded(w.s.log, filepath.Dir(w.s.path), bytesOf(batch))
		w.s.metrics.commit(time.Since(begun), rows)
		current += int64(rows)
		w.s.current.Store(current)
		for i, e := range events {
			lease := e.KV.Lease
			if e.Delete {
				lease = 0
			}
			w.s.ttl.Set(events[i].KV.Key, e.KV.ModRevision, lease)
		}
		w.s.hub.Publish(events, current)
	}
	for i, o := range batch {
		if results[i].rev == 0 {
			results[i].rev = current
		}
		o.done <- results[i]
	}
	if rows > 0 {
		w.s.boundWAL(ctx)
	}
}

// bytesOf returns the bytes of keys and values in a batch.
func bytesOf(batch []op) (n int64) {
	for _, o := range batch {
		n += int64(len(o.key) + len(o.value))
	}
	return n
}

// write runs the transaction of a batch. It fills results and returns the number of rows and their events.
func (w *writer) write(ctx context.Context, batch []op, results []result, current int64) (rows int,
	events []*server.Event, err error) {
	if _, err := w.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return 0, nil, err
	}
	defer func() {
		if err != nil {
			// After some errors SQLite has rolled back already, and this fails.
			_, _ = w.conn.ExecContext(ctx, "ROLLBACK")
		}
	}()
	for i, o := range batch {
		old, err := w.find(ctx, o.key)
		if err != nil {
			return 0, nil, fmt.Errorf("find %q: %w", o.key, err)
		}
		there := old != nil && old.flags&deleted == 0
		next := row{rev: current + int64(rows) + 1, key: o.key, value: o.value, lease: o.lease, version: 1}
		if old != nil {
			next.prev = old.rev
		}
		switch o.verb {
		case createKey:
			if there {
				results[i].err = server.ErrKeyExists
				continue
			}
			next.create = next.rev
		case updateKey:
			if !there || old.rev != o.rev {
				if there {
					results[i].kv = old.kv()
				}
				continue
			}
			next.create, next.version = old.create, old.version+1
		case deleteKey:
			if !there || o.rev != 0 && old.rev != o.rev {
				results[i].ok = !there && o.rev == 0
				if there {
					results[i].kv = old.kv()
				}
				continue
			}
			next.create, next.version, next.flags, next.lease, next.value = old.create, 0, deleted, 0, nil
			results[i].kv = old.kv()
		}
		if _, err := w.insert.ExecContext(ctx, next.rev, next.key, next.create, next.prev, next.version, next.lease,
			next.flags, next.checksum(), next.value); err != nil {
			return 0, nil, fmt.Errorf("write %q: %w", o.key, err)
		}
		rows++
		results[i].rev, results[i].ok = next.rev, true
		e := &server.Event{Create: next.create == next.rev, Delete: next.flags&deleted != 0, KV: next.kv()}
		if there {
			e.PrevKV = old.kv()
		}
		if o.verb == updateKey {
			results[i].kv = e.KV
		}
		events = append(events, e)
	}
	if rows == 0 {
		_, err := w.conn.ExecContext(ctx, "ROLLBACK")
		return 0, nil, err
	}
	if _, err := w.conn.ExecContext(ctx, "COMMIT"); err != nil {
		return 0, nil, fmt.Errorf("commit %d writes: %w", rows, err)
	}
	return rows, events, nil
}

// find returns the newest row of a key, or nil.
func (w *writer) find(ctx context.Context, key []byte) (*row, error) {
	var r row
	err := w.latest.QueryRowContext(ctx, key).Scan(&r.rev, &r.key, &r.create, &r.prev, &r.version, &r.lease, &r.flags,
		&r.sum, &r.value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.verify(); err != nil {
		return nil, err
	}
	return &r, nil
}
