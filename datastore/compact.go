package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/umiak-io/umiak/datastore/internal/watch"
)

// revisioned is a store that a compactor can compact.
type revisioned interface {
	server.Backend
	Revisions() (current, compact int64)
}

// compactor drops the history of a store that is older than one to two intervals and publishes the compact revision
// in watch.CompactKey. It replaces kube-apiserver's compactor, which also writes when nothing has changed; this one
// does not write to an idle store.
type compactor struct {
	name  string
	store revisioned
	log   *slog.Logger
	last  int64 // newest revision at the last turn
	// Numbers of revisions without the writes of that key: at the last turn, and at the last compaction.
	lastForeign, doneForeign int64
	keyWrites                int64 // writes of that key
}

func newCompactor(name string, s revisioned, log *slog.Logger) *compactor {
	now, compacted := s.Revisions()
	return &compactor{name: name, store: s, log: log, last: now, lastForeign: now, doneForeign: compacted}
}

func (c *compactor) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.turn(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("cannot compact the datastore, trying again", "store", c.name, "error", err)
		}
	}
}

// turn compacts the store to the revision that was the newest at the last turn.
func (c *compactor) turn(ctx context.Context) error {
	now, compacted := c.store.Revisions()
	foreign := now - c.keyWrites
	if c.lastForeign > c.doneForeign {
		if c.last > compacted { // the store in memory also compacts on its own
			if _, err := c.store.Compact(ctx, c.last); err != nil {
				return fmt.Errorf("compact to revision %d: %w", c.last, err)
			}
			compacted = c.last
		}
		if err := c.publish(ctx, compacted); err != nil {
			return fmt.Errorf("publish that revision %d is compacted: %w", compacted, err)
		}
		c.keyWrites++
		c.doneForeign = c.lastForeign
	}
	c.last, c.lastForeign = now, foreign
	return nil
}

// publish writes watch.CompactKey in the form in which kine's server stores it for kube-apiserver.
func (c *compactor) publish(ctx context.Context, revision int64) error {
	_, kv, err := c.store.Get(ctx, watch.CompactKey, 0, false)
	if err != nil {
		return err
	}
	value := []byte(strconv.FormatInt(revision, 10))
	if kv == nil {
		_, err = c.store.Create(ctx, watch.CompactKey, server.EncodeVersion(1, value), 0)
		return err
	}
	version, _ := server.DecodeVersion(kv.Value)
	_, _, ok, err := c.store.Update(ctx, watch.CompactKey, server.EncodeVersion(version+1, value), kv.ModRevision, 0)
	if err == nil && !ok {
		err = fmt.Errorf("another writer has changed %s", watch.CompactKey)
	}
	return err
}
