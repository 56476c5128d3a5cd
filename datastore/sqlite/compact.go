package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	sweepSpan   = 500                   // revisions of the first batch
	sweepTarget = 20 * time.Millisecond // time for which a batch may block writers
	sweepMin    = 50                    // revisions of a batch
	sweepMax    = 20000
)

// Compact makes the history before a revision unreadable and wakes the sweeper, which removes it.
func (s *Store) Compact(ctx context.Context, revision int64) (int64, error) {
	current, compact := s.Revisions()
	switch {
	case revision > current:
		return 0, server.ErrFutureRev
	case revision <= compact:
		return 0, server.ErrCompacted
	}
	err := s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
		if revision <= s.compact.Load() {
			return server.ErrCompacted
		}
		if _, err := c.ExecContext(ctx, `UPDATE meta SET value = ? WHERE name = 'compact'`, revision); err != nil {
			return err
		}
		s.compact.Store(revision)
		return nil
	})
	if err != nil {
		return 0, forClient(err)
	}
	s.wakeSweeper()
	return current, nil
}

func (s *Store) wakeSweeper() {
	select {
	case s.sweepWake <- struct{}{}:
	default:
	}
}

// sweeper removes compacted rows and then shrinks the file, until ctx ends. It sleeps until Compact wakes it; after an
// error it continues a minute later.
func (s *Store) sweeper(ctx context.Context) {
	for {
		err := s.sweep(ctx)
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot remove compacted revisions, trying again in a minute", "error", classify(err))
			again = time.After(time.Minute)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.sweepWake:
		case <-again:
		}
	}
}

// sweep removes compacted rows up to the compact revision.
func (s *Store) sweep(ctx context.Context) error {
	begun, first := time.Now(), s.swept.Load()
	removed, span := int64(0), int64(sweepSpan)
	for s.swept.Load() < s.compact.Load() {
		batchBegun := time.Now()
		n, err := s.sweepBatch(ctx, span)
		if err != nil {
			return err
		}
		removed += n
		// The slower the disk, the smaller the batches.
		switch took := time.Since(batchBegun); {
		case took > sweepTarget:
			span = max(span/2, sweepMin)
		case took < sweepTarget/2:
			span = min(span*2, sweepMax)
		}
	}
	if removed > 0 {
		s.log.Debug("removed compacted revisions", "rows", removed, "from", first, "to", s.swept.Load(), "took",
			time.Since(begun).Round(time.Millisecond))
	}
	return s.shrink(ctx)
}

// sweepBatch processes the next span revisions and returns the number of rows that it removed: the predecessors of the
// rows there, which those have replaced, and tombstones that no readable revision sees. The row at the compact revision
// itself stays, so that it can be watched.
func (s *Store) sweepBatch(ctx context.Context, span int64) (removed int64, err error) {
	err = s.writer.do(ctx, func(ctx context.Context, c *sql.Conn) error {
		from, to := s.swept.Load(), s.compact.Load()
		if from+span < to {
			to = from + span
		}
		if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return err
		}
		res, err := c.ExecContext(ctx, `DELETE FROM log WHERE rev IN (
			SELECT prev_rev FROM log WHERE rev > ? AND rev <= ? AND prev_rev > 0
			UNION ALL SELECT rev FROM log WHERE rev >= ? AND rev < ? AND flags & 1 != 0)`, from, to, from, to)
		if err == nil {
			_, err = c.ExecContext(ctx, `UPDATE meta SET value = ? WHERE name = 'swept'`, to)
		}
		if err == nil {
			_, err = c.ExecContext(ctx, "COMMIT")
		}
		if err != nil {
			_, _ = c.ExecContext(ctx, "ROLLBACK") // SQLite may have rolled back already
			return err
		}
		removed, err = res.RowsAffected()
		s.swept.Store(to)
		s.boundWAL(ctx)
		return err
	})
	return removed, err
}
