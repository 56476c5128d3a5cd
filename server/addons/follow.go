package addons

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// followRecords learns what earlier runs and other servers have applied, and follows what they write. It returns when the
// records that are there are known, which waits for the API server.
func (c *Controller) followRecords(ctx context.Context, wg *sync.WaitGroup) error {
	api := c.typed.CoreV1().ConfigMaps(recordNamespace)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			o.LabelSelector = labelRecord
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.LabelSelector = labelRecord
			return api.Watch(ctx, o)
		},
	}
	store := &recordStore{c: c, listed: make(chan struct{})}
	r := cache.NewReflectorWithOptions(lw, &core.ConfigMap{}, store, cache.ReflectorOptions{Name: "manifest records"})
	wg.Go(func() { r.RunWithContext(ctx) })
	select {
	case <-store.listed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recordStore hands the records that a reflector gets to the controller, and keeps none itself.
type recordStore struct {
	c      *Controller
	once   sync.Once
	listed chan struct{} // closed when all records are known
}

var _ cache.ReflectorStore = (*recordStore)(nil)

// Add takes a record.
func (s *recordStore) Add(obj any) error {
	s.c.onRecord(obj, false)
	return nil
}

// Update takes a record that has changed.
func (s *recordStore) Update(obj any) error { return s.Add(obj) }

// Delete takes a record that is gone.
func (s *recordStore) Delete(obj any) error {
	s.c.onRecord(obj, true)
	return nil
}

// Replace takes all records that there are.
func (s *recordStore) Replace(all []any, _ string) error {
	there := map[string]bool{}
	for _, obj := range all {
		if cm, ok := obj.(*core.ConfigMap); ok {
			there[cm.Name] = true
		}
		s.c.onRecord(obj, false)
	}
	s.c.mu.Lock()
	for id, it := range s.c.items {
		if it.rec != nil && !there[recordName(id)] {
			s.c.unrecorded(id, it)
		}
	}
	s.c.mu.Unlock()
	s.once.Do(func() { close(s.listed) })
	return nil
}

// Resync does nothing.
func (s *recordStore) Resync() error { return nil }

// onRecord is told of every change to a record, this server's own included.
func (c *Controller) onRecord(obj any, deleted bool) {
	cm, ok := obj.(*core.ConfigMap)
	if !ok {
		return
	}
	id, rec, err := decodeRecord(cm)
	if err != nil {
		// Whoever damaged it has taken over what it lists.
		c.log.Warn("a manifest's record is damaged, what it listed is no longer pruned", "error", err)
		return
	}
	rec.settle(c.cfg.Server, c.cfg.Alone)
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[id]
	switch {
	case deleted && it != nil && it.rec != nil && it.rec.uid == rec.uid:
		c.unrecorded(id, it)
	case deleted:
	case it == nil:
		c.items[id] = &item{gone: true, rec: rec, file: manifest.File{Name: rec.Name, ID: id, Origin: rec.Origin},
			status: FileStatus{Name: rec.Name, Origin: rec.Origin, State: Pending, Objects: len(rec.Items), Since: time.Now()}}
		if c.first != nil { // otherwise the first look at the folder decides
			c.items[id].missed = true
			c.queue.Add(id)
		}
	case it.rec == nil || rec.newer(it.rec):
		others := it.rec != nil && !slices.Equal(slices.Sorted(maps.Keys(it.rec.Servers)), slices.Sorted(maps.Keys(rec.Servers)))
		if it.rec = rec; others {
			c.queue.Add(id)
		}
	}
}

// unrecorded notes that somebody has deleted a manifest's record: with it, what it listed was taken over, unless its file
// is still there. c.mu is held.
func (c *Controller) unrecorded(id string, it *item) {
	if it.rec = nil; it.gone {
		delete(c.items, id)
		return
	}
	c.queue.Add(id)
}

// refresh reads a manifest's record, which somebody else has changed.
func (c *Controller) refresh(ctx context.Context, id string) error {
	cm, err := c.typed.CoreV1().ConfigMaps(recordNamespace).Get(ctx, recordName(id), meta.GetOptions{})
	var rec *record
	if !apierrors.IsNotFound(err) {
		if err == nil {
			if _, rec, err = decodeRecord(cm); err != nil { // it cannot be used; the next save replaces it
				c.log.Warn("the record of a manifest is damaged and is written again", "record", cm.Name, "error", err)
				rec, err = &record{uid: string(cm.UID), version: cm.ResourceVersion}, nil
			}
		}
		if err != nil {
			return fmt.Errorf("read record %s: %w", recordName(id), err)
		}
		rec.settle(c.cfg.Server, c.cfg.Alone)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.rec = rec
	}
	return nil
}
