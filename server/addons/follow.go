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

// followRecords reads what earlier runs and other servers have applied, and follows changes. It returns once all
// existing records are known, which waits for the API server.
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

// recordStore passes the records of a reflector to the controller, and stores none.
type recordStore struct {
	c      *Controller
	once   sync.Once
	listed chan struct{} // closed when all records are known
}

var _ cache.ReflectorStore = (*recordStore)(nil)

// Add implements cache.ReflectorStore.
func (s *recordStore) Add(obj any) error {
	s.c.onRecord(obj, false)
	return nil
}

// Update implements cache.ReflectorStore.
func (s *recordStore) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *recordStore) Delete(obj any) error {
	s.c.onRecord(obj, true)
	return nil
}

// Replace implements cache.ReflectorStore.
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

// Resync implements cache.ReflectorStore. It does nothing.
func (s *recordStore) Resync() error { return nil }

// onRecord handles a change of a record, including those that this server made.
func (c *Controller) onRecord(obj any, deleted bool) {
	cm, ok := obj.(*core.ConfigMap)
	if !ok {
		return
	}
	id, rec, err := decodeRecord(cm)
	if err != nil {
		// Whoever damaged it is now responsible for the objects.
		c.log.Warn("a manifest's record is damaged, its objects are no longer pruned", "error", err)
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
			status: FileStatus{Name: rec.Name, Origin: rec.Origin, State: Pending, Objects: len(rec.Items),
				Since: time.Now()}}
		if c.first != nil { // otherwise the first scan decides
			c.items[id].missed = true
			c.queue.Add(id)
		}
	case it.rec == nil || rec.newer(it.rec):
		others := it.rec != nil && !slices.Equal(slices.Sorted(maps.Keys(it.rec.Servers)),
			slices.Sorted(maps.Keys(rec.Servers)))
		if it.rec = rec; others {
			c.queue.Add(id)
		}
	}
}

// unrecorded handles that someone has deleted a manifest's record: unless its file still exists, umiak no longer
// manages the objects. c.mu must be held.
func (c *Controller) unrecorded(id string, it *item) {
	if it.rec = nil; it.gone {
		delete(c.items, id)
		return
	}
	c.queue.Add(id)
}

// refresh reads a manifest's record again after another server has changed it.
func (c *Controller) refresh(ctx context.Context, id string) error {
	cm, err := c.typed.CoreV1().ConfigMaps(recordNamespace).Get(ctx, recordName(id), meta.GetOptions{})
	var rec *record
	if !apierrors.IsNotFound(err) {
		if err == nil {
			if _, rec, err = decodeRecord(cm); err != nil { // the next save replaces it
				c.log.Warn("a manifest's record is damaged, writing it again", "record", cm.Name, "error", err)
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
