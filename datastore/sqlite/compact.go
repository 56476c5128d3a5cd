package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	sweepSpan   = 500                   // revisions looked at in the first batch
	sweepTarget = 20 * time.Millisecond // how long a batch may keep writers waiting
	sweepMin    = 50
	sweepMax    = 20000
)

// Compact makes history before the revision unreadable and lets the sweeper remove it. kube-apiserver asks
// for it every five minutes and nothing else does, so it is not done twice and an idle store stays idle.
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

// sweeper removes what compaction allows to remove, then gives the room back. It sleeps until there is
// something to do; after an error it tries again later, from where it was.
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
		// A disk ten times slower gets batches ten times smaller, and the other way round.
		switch took := time.Since(batchBegun); {
		case took > sweepTarget:
			span = max(span/2, sweepMin)
		case took < sweepTarget/2:
			span = min(span*2, sweepMax)
		}
	}
	if removed > 0 {
		s.log.Debug("removed compacted revisions", "rows", removed, "from", first, "to", s.swept.Load(), "took", time.Since(begun).Round(time.Millisecond))
	}
	return s.shrink(ctx)
}

// sweepBatch looks at the next span revisions. A row there has replaced the one that it names as its
// predecessor, and a tombstone has served its purpose once no readable revision sees it; the row at the
// compact revision itself stays, so that it can still be watched.
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
			_, _ = c.ExecContext(ctx, "ROLLBACK") // may have happened by itself
			return err
		}
		removed, err = res.RowsAffected()
		s.swept.Store(to)
		s.boundWALLocked(ctx)
		return err
	})
	return removed, err
}
