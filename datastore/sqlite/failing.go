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

// failure remembers why writes fail.
type failure struct {
	mu    sync.Mutex
	err   error // nil while writes succeed
	bytes int64 // of the largest transaction that found the disk full; 0 where writes fail for another reason
	retry bool  // one is under way
}

func (f *failure) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

// failed records that a transaction of some bytes failed and logs when the reason changes, not every time.
func (f *failure) failed(log *slog.Logger, err error, bytes int64) {
	err = classify(err)
	f.mu.Lock()
	changed := f.err == nil || reason(f.err) != reason(err)
	f.err = err
	if errors.Is(err, ErrFull) {
		f.bytes = max(f.bytes, bytes, 1)
	}
	f.mu.Unlock()
	if changed {
		log.Error("writes fail", "error", err)
	}
}

// reason returns which of the known reasons err has, nil for another one.
func reason(err error) error {
	for _, known := range []error{ErrFull, ErrReadOnly, ErrDamaged} {
		if errors.Is(err, known) {
			return known
		}
	}
	return nil
}

// succeeded records that a transaction of some bytes is on the disk. On a full disk a small one still finds room in what
// SQLite's files have already, so only one of the size of those that failed, or room on the disk, ends the failure.
func (f *failure) succeeded(log *slog.Logger, dir string, bytes int64) {
	f.mu.Lock()
	over := f.err != nil && (f.bytes == 0 || bytes >= f.bytes || room(dir) > 2*f.bytes)
	if over {
		f.err, f.bytes = nil, 0
	}
	f.mu.Unlock()
	if over {
		log.Info("writes work again")
	}
}

// begin reports whether a write is to be tried, and that nobody tries one already.
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

// room returns how many bytes the disk below dir has left, 0 where that cannot be read.
func room(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// Retry tries a write if the last ones failed, so that Status says how it is now: nobody else may write for minutes. It
// returns when the write has ended or ctx has.
func (s *Store) Retry(ctx context.Context) {
	if !s.failure.begin() {
		return
	}
	done := make(chan struct{})
	go func() { // a disk may not answer at all
		defer close(done)
		defer s.failure.end()
		err := s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
			// Pages are written although nothing in them changes.
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
