package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
)

const (
	// autoCheckpoint is the size of the write-ahead log, in pages, from which on SQLite copies it back
	// into the file as part of a commit: 4 MiB. Pages written often are copied once.
	autoCheckpoint = 1000
	// journalLimit is what an emptied log keeps of its length; rewriting in place costs the file system
	// less than growing again.
	journalLimit = 8 << 20
	// walLimit is when readers are made to wait for a moment so that the log can be emptied. Readers that
	// overlap without a gap would otherwise let it grow for ever.
	walLimit = 16 << 20

	// The file is shrunk when more than vacuumMin and a quarter of it are free, down to an eighth: room
	// that is soon used again is not worth two writes.
	vacuumMin  = 4 << 20
	vacuumStep = 256 // pages at once
)

func (s *Store) sizes() (file, wal int64) {
	if st, err := os.Stat(s.path); err == nil {
		file = st.Size()
	}
	if st, err := os.Stat(s.path + "-wal"); err == nil {
		wal = st.Size()
	}
	return file, wal
}

// boundWAL empties the log when it has become too long.
func (w *writer) boundWAL(ctx context.Context) { w.s.boundWALLocked(ctx) }

// boundWALLocked is called on the writer's goroutine.
func (s *Store) boundWALLocked(ctx context.Context) {
	if _, wal := s.sizes(); wal > walLimit {
		if err := s.truncateWAL(ctx, s.writer.conn); err != nil {
			s.log.Warn("cannot empty the write-ahead log", "bytes", wal, "error", classify(err))
		}
	}
}

// truncateWAL copies the log into the file and cuts it, with readers held off.
func (s *Store) truncateWAL(ctx context.Context, c *sql.Conn) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	var busy, frames, copied int64
	if err := c.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &copied); err != nil {
		return err
	}
	if busy != 0 {
		return fmt.Errorf("a reader held on to %d of %d pages", frames-copied, frames)
	}
	return nil
}

// shrink returns free pages to the file system, in steps between which writers get their turn.
func (s *Store) shrink(ctx context.Context) error {
	shrunk := false
	for {
		var more bool
		err := s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
			var free, pages, size int64
			if err := c.QueryRowContext(ctx, "SELECT f.freelist_count, p.page_count, s.page_size FROM pragma_freelist_count f, pragma_page_count p, pragma_page_size s").Scan(&free, &pages, &size); err != nil {
				return err
			}
			if !shrunk && (free*size < vacuumMin || free < pages/4) || shrunk && free < pages/8 {
				return nil
			}
			more = true
			rows, err := c.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumStep))
			if err != nil {
				return err
			}
			for rows.Next() { // each step frees a page
			}
			s.boundWALLocked(ctx)
			return rows.Close()
		})
		if err != nil {
			return err
		}
		if !more {
			break
		}
		shrunk = true
	}
	if !shrunk {
		return nil
	}
	file, _ := s.sizes()
	err := s.writer.do(ctx, s.truncateWAL)
	if after, _ := s.sizes(); err == nil {
		s.log.Info("gave room back to the disk", "bytes", file-after, "file", after)
	}
	return err
}
