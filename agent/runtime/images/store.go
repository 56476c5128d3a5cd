package images

import (
	"context"
	"slices"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
)

// followStore queues an archive or list again when one of its images is removed from the store or loses its pin: by a garbage
// collection that began before the import, or manually.
func (i *Importer) followStore(ctx context.Context, c *client.Client, q *queue) {
	for ctx.Err() == nil {
		events, errs := c.Subscribe(ctx, imageEvents("delete", "update")...)
		for open := true; open; {
			select {
			case e := <-events:
				i.handleEvent(ctx, c, q, e)
			case err := <-errs:
				open = false
				if ctx.Err() == nil {
					i.cfg.Log.Warn("containerd's event stream ended, subscribing again", "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(settleTime): // containerd restarts
		}
	}
}

// handleEvent processes one image event of the store.
func (i *Importer) handleEvent(ctx context.Context, c *client.Client, q *queue, e *events.Envelope) {
	if e == nil || e.Event == nil {
		return
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return
	}
	var name string
	switch v := v.(type) {
	case *apievents.ImageDelete:
		name = v.Name
		i.forgetImage(name)
	case *apievents.ImageUpdate:
		if name = v.Name; v.Labels[pinnedLabel] == pinnedValue {
			return
		}
	}
	i.mu.Lock()
	var from []string
	for file, k := range i.records {
		if _, ok := k.Images[name]; ok {
			from = append(from, file)
		}
	}
	i.mu.Unlock()
	if len(from) == 0 {
		return
	}
	// A tag that a pull has moved to another digest stays as it is.
	if img, err := c.ImageService().Get(namespaces.WithNamespace(ctx, Namespace), name); err == nil {
		i.mu.Lock()
		from = slices.DeleteFunc(from, func(file string) bool { return i.records[file].Images[name] != img.Target.Digest.String() })
		i.mu.Unlock()
	}
	for _, file := range from {
		if isPullList(file) {
			i.lists.add(file)
		} else {
			q.add(file)
		}
	}
}
