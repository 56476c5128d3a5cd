package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
)

const (
	// autoCheckpoint is the size of the write-ahead log in pages (4 MiB) at which SQLite copies it into the file, as
	// part of a commit. A page that was written several times is copied once.
	autoCheckpoint = 1000
	// journalLimit is the length in bytes at which an emptied log file stays: rewriting it in place costs the file
	// system less than growing it again.
	journalLimit = 8 << 20
	// walLimit is the length in bytes at which readers are made to wait for a moment so that the log can be emptied.
	// Readers that overlap without a gap would otherwise let it grow without bound.
	walLimit = 16 << 20

	// vacuumMin is the number of free bytes above which, if they are also a quarter of the file, the file is shrunk
	// until only an eighth is free: free space that is soon used again is not worth two writes.
	vacuumMin  = 4 << 20
	vacuumStep = 256 // pages freed at once
)

// sizes returns the sizes of the file and its write-ahead log in bytes.
func (s *Store) sizes() (file, wal int64) {
	if st, err := os.Stat(s.path); err == nil {
		file = st.Size()
	}
	if st, err := os.Stat(s.path + "-wal"); err == nil {
		wal = st.Size()
	}
	return file, wal
}

// boundWAL empties the write-ahead log if it is longer than walLimit. Only the writer's goroutine may call it.
func (s *Store) boundWAL(ctx context.Context) {
	if _, wal := s.sizes(); wal > walLimit {
		if err := s.truncateWAL(ctx, s.writer.conn); err != nil {
			s.log.Warn("cannot empty the write-ahead log", "bytes", wal, "error", classify(err))
		}
	}
}

// truncateWAL copies the log into the file and truncates it, while readers wait.
func (s *Store) truncateWAL(ctx context.Context, c *sql.Conn) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	var busy, frames, copied int64
	if err := c.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &copied); err != nil {
		return err
	}
	if busy != 0 {
		return fmt.Errorf("a reader still uses %d of %d pages", frames-copied, frames)
	}
	return nil
}

// shrink returns free pages to the file system, in steps between which writes are committed.
func (s *Store) shrink(ctx context.Context) error {
	shrunk := false
	for {
		var more bool
		err := s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
			var free, pages, size int64
			if err := c.QueryRowContext(ctx, "SELECT f.freelist_count, p.page_count, s.page_size FROM "+
				"pragma_freelist_count f, pragma_page_count p, pragma_page_size s").Scan(&free, &pages,
				&size); err != nil {
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
			s.boundWAL(ctx)
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
		s.log.Info("returned free space to the file system", "bytes", file-after, "file", after)
	}
	return err
}
