package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// CompactKey is where kine's server keeps the API server's compact_rev_key. The API server drops the snapshots of its
// watch caches up to the revision there, and refuses to go on listing from an older one.
const CompactKey = "compact_rev_key_apiserver"

// revisioned is a store that a compactor works on.
type revisioned interface {
	server.Backend
	Revisions() (current, compact int64)
}

// compactor gives up a store's history that is older than one to two intervals and tells the API server so, in place
// of the API server, which asks for it also where nothing has changed: an idle store is not written to.
type compactor struct {
	name  string
	store revisioned
	log   *slog.Logger

	last int64 // newest revision at the last turn
	// Revisions without those of the compactor's own key: at the last turn, and up to the last compaction.
	lastForeign, doneForeign int64
	own                      int64 // writes of the key
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

// turn compacts to the newest revision of the last turn.
func (c *compactor) turn(ctx context.Context) error {
	now, compacted := c.store.Revisions()
	foreign := now - c.own
	if c.lastForeign > c.doneForeign {
		if c.last > compacted { // the store in memory may have done it
			if _, err := c.store.Compact(ctx, c.last); err != nil {
				return fmt.Errorf("compact to revision %d: %w", c.last, err)
			}
			compacted = c.last
		}
		if err := c.publish(ctx, compacted); err != nil {
			return fmt.Errorf("publish that revision %d is compacted: %w", compacted, err)
		}
		c.own++
		c.doneForeign = c.lastForeign
	}
	c.last, c.lastForeign = now, foreign
	return nil
}

// publish writes the key as kine's server would for the API server.
func (c *compactor) publish(ctx context.Context, revision int64) error {
	_, kv, err := c.store.Get(ctx, CompactKey, 0, false)
	if err != nil {
		return err
	}
	value := []byte(strconv.FormatInt(revision, 10))
	if kv == nil {
		_, err = c.store.Create(ctx, CompactKey, server.EncodeVersion(1, value), 0)
		return err
	}
	version, _ := server.DecodeVersion(kv.Value)
	_, _, ok, err := c.store.Update(ctx, CompactKey, server.EncodeVersion(version+1, value), kv.ModRevision, 0)
	if err == nil && !ok {
		err = fmt.Errorf("somebody else has written %s", CompactKey)
	}
	return err
}
