package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"time"
)

// fullCheckLimit is the size in bytes up to which the whole file is checked before it is used, which takes well under a
// tenth of a second. Of a larger file, the newest rows are checked first and all rows soon after, in the background and
// in small pieces.
const fullCheckLimit = 16 << 20

const (
	checkPiece  = 500  // rows checked at once
	checkNewest = 2000 // revisions checked before a large file is used
)

// check checks the file before it is used and records the result.
func (s *Store) check(ctx context.Context, c *sql.Conn) error {
	st, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	scope := "newest rows"
	if st.Size() <= fullCheckLimit {
		scope = "all pages and rows"
		if err := integrityCheck(ctx, c); err != nil {
			return err
		}
		_, err = checkRows(ctx, c, 0, -1)
	} else {
		var top int64
		if err = c.QueryRowContext(ctx, `SELECT coalesce(max(rev), 0) FROM log`).Scan(&top); err == nil {
			_, err = checkRows(ctx, c, top-checkNewest, -1)
		}
	}
	s.recordCheck(scope, err)
	return err
}

// recordCheck stores the result of a check for Status.
func (s *Store) recordCheck(scope string, err error) {
	i := Integrity{At: time.Now().UTC(), Scope: scope}
	if err != nil {
		i.Error = err.Error()
	}
	s.statusMu.Lock()
	s.integrity = i
	s.statusMu.Unlock()
}

// integrityCheck runs SQLite's check of every page, every index entry and the free list.
func integrityCheck(ctx context.Context, c *sql.Conn) error {
	rows, err := c.QueryContext(ctx, "PRAGMA integrity_check(5)")
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err has the error
	var found []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			found = append(found, line)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: %s", ErrDamaged, strings.Join(found, "; "))
	}
	return nil
}

// queryer is a *sql.DB or *sql.Conn.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// checkRows verifies the checksums and index entries of the rows above a revision, at most limit of them (-1: all). It
// returns the last revision that it checked, 0 if that was the end.
func checkRows(ctx context.Context, q queryer, above int64, limit int) (last int64, err error) {
	rows, err := q.QueryContext(ctx, `SELECT `+columns+`, l.sum, l.value,
		EXISTS (SELECT 1 FROM log i INDEXED BY log_key WHERE i.key = l.key AND i.rev = l.rev AND i.flags = l.flags)
		FROM log l NOT INDEXED WHERE l.rev > ? ORDER BY l.rev LIMIT ?`, above, limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close() //nolint:errcheck // Err has the error
	n := 0
	for rows.Next() {
		var r row
		var indexed bool
		if err := rows.Scan(&r.rev, &r.key, &r.create, &r.prev, &r.version, &r.lease, &r.flags, &r.sum, &r.value,
			&indexed); err != nil {
			return 0, err
		}
		if err := r.verify(); err != nil {
			return 0, err
		}
		if !indexed {
			return 0, fmt.Errorf("revision %d of %q: %w: the index does not have it", r.rev, r.key, ErrDamaged)
		}
		last = r.rev
		n++
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if n < limit {
		return 0, nil
	}
	return last, nil
}

// checkRest checks all rows of a large file once, at a quarter of one core. Its transactions are short, so that the
// write-ahead log can be emptied in between.
func (s *Store) checkRest(ctx context.Context) {
	s.statusMu.Lock()
	done := s.integrity.Scope != "newest rows"
	s.statusMu.Unlock()
	if done {
		return
	}
	for at := int64(0); ; {
		begun := time.Now()
		s.gate.RLock()
		last, err := checkRows(ctx, s.readers, at, checkPiece)
		s.gate.RUnlock()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.recordCheck("all rows", err)
			s.log.Error("the datastore is damaged; the next start recovers what can be read", "error", err)
			return
		}
		if last == 0 {
			s.recordCheck("all rows", nil)
			return
		}
		at = last
		select {
		case <-ctx.Done():
			return
		case <-time.After(3 * time.Since(begun)):
		}
	}
}
