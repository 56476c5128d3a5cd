package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// failure is the reason why writes fail.
type failure struct {
	notify func(bool) // called when writes begin to fail and when they work again; may be nil

	mu    sync.Mutex
	err   error // nil while writes succeed
	bytes int64 // size of the largest transaction that found the disk full; 0 if writes fail for another reason
	retry bool  // a retry is running
}

func (f *failure) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

// failed records that a transaction of some bytes failed. It logs only a new reason.
func (f *failure) failed(log *slog.Logger, err error, bytes int64) {
	err = classify(err)
	f.mu.Lock()
	began := f.err == nil
	changed := began || reason(f.err) != reason(err)
	f.err = err
	if began && f.notify != nil {
		f.notify(true)
	}
	if errors.Is(err, ErrFull) {
		f.bytes = max(f.bytes, bytes, 1)
	}
	f.mu.Unlock()
	if changed {
		log.Error("writes fail", "error", err)
	}
}

// reason returns the Err variable that err wraps, nil for another error.
func reason(err error) error {
	for _, r := range []error{ErrFull, ErrReadOnly, ErrDamaged} {
		if errors.Is(err, r) {
			return r
		}
	}
	return nil
}

// succeeded records that a transaction of some bytes is on disk. On a full disk, a small transaction still fits into
// the files of SQLite. So the failure ends only with a transaction of the size of those that failed, or with free
// space.
func (f *failure) succeeded(log *slog.Logger, dir string, bytes int64) {
	f.mu.Lock()
	over := f.err != nil && (f.bytes == 0 || bytes >= f.bytes || room(dir) > 2*f.bytes)
	if over {
		f.err, f.bytes = nil, 0
		if f.notify != nil {
			f.notify(false)
		}
	}
	f.mu.Unlock()
	if over {
		log.Info("writes work again")
	}
}

// begin reports whether to retry a write: writes fail and no retry is running. The caller then calls end.
func (f *failure) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || f.retry {
		return false
	}
	f.retry = true
	return true
}

func (f *failure) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.retry = false
}

// room returns the number of free bytes of the file system of dir, 0 if that cannot be read.
func room(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// Retry tries a write if the last ones failed, so that Status is up to date also without other writes. It
// returns when the write or ctx ends.
func (s *Store) Retry(ctx context.Context) {
	if !s.failure.begin() {
		return
	}
	done := make(chan struct{})
	go func() { // the disk may never answer
		defer close(done)
		defer s.failure.end()
		err := s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
			// This writes pages although no value changes.
			_, err := c.ExecContext(ctx, "UPDATE meta SET value = value")
			return err
		})
		switch {
		case err == nil:
			s.failure.succeeded(s.log, filepath.Dir(s.path), 0)
		case ctx.Err() == nil && !errors.Is(err, errClosed):
			s.failure.failed(s.log, err, 0)
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
