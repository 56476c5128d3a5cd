package images

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Finder finds the images that were imported on this node.
type Finder struct {
	c *client.Client

	mu  sync.Mutex
	ids map[digest.Digest]string // the digest of an image's configuration, by that of the image
}

// NewFinder returns a finder for the containerd at socket. It connects at the first call.
func NewFinder(socket string) (*Finder, error) {
	c, err := Connect(socket)
	if err != nil {
		return nil, err
	}
	return &Finder{c: c, ids: map[digest.Digest]string{}}, nil
}

// Imported returns the target of an imported image's name. ok is false for an image that was pulled, or whose archive
// was removed since.
func (f *Finder) Imported(ctx context.Context, name string) (_ ocispec.Descriptor, ok bool) {
	img, err := f.c.ImageService().Get(namespaces.WithNamespace(ctx, Namespace), name)
	if err != nil {
		return ocispec.Descriptor{}, false
	}
	return img.Target, img.Labels[pinnedLabel] == pinnedValue
}

// Content is an image identified by its content, independent of its names.
type Content struct {
	ID       string   // digest of its configuration: the kubelet's image ID
	Imported []string // the names under which it was imported
	Others   []string // its other names
}

// Contents lists the node's images. It reads the configuration of each image once.
func (f *Finder) Contents(ctx context.Context) ([]Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ctx = namespaces.WithNamespace(ctx, Namespace)
	all, err := f.c.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	by := map[string]*Content{}
	there := map[digest.Digest]bool{}
	var order []string
	for _, img := range all {
		there[img.Target.Digest] = true
		id, cached := f.ids[img.Target.Digest]
		if !cached {
			config, err := images.Config(ctx, f.c.ContentStore(), img.Target, platforms.Default())
			if err != nil {
				continue // for another platform, or incomplete: the kubelet does not list it either
			}
			id = config.Digest.String()
			f.ids[img.Target.Digest] = id
		}
		c := by[id]
		if c == nil {
			c = &Content{ID: id}
			by[id] = c
			order = append(order, id)
		}
		if img.Labels[pinnedLabel] == pinnedValue {
			c.Imported = append(c.Imported, img.Name)
		} else {
			c.Others = append(c.Others, img.Name)
		}
	}
	maps.DeleteFunc(f.ids, func(d digest.Digest, _ string) bool { return !there[d] })
	slices.Sort(order)
	out := make([]Content, len(order))
	for i, id := range order {
		out[i] = *by[id]
	}
	return out, nil
}

// imageEvents returns filters for containerd's image events of the given kinds.
func imageEvents(kinds ...string) []string {
	for i, k := range kinds {
		kinds[i] = `namespace==` + Namespace + `,topic=="/images/` + k + `"`
	}
	return kinds
}

// imageSettleTime is the time after an image event until Follow calls changed: one import creates several names.
const imageSettleTime = 300 * time.Millisecond

// Follow calls changed once at the beginning, and after images have gained or lost names, until ctx ends or changed
// fails. It returns an error if containerd's event stream ends.
func (f *Finder) Follow(ctx context.Context, changed func(context.Context) error) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, Namespace))
	defer cancel()
	events, errs := f.c.Subscribe(ctx, imageEvents("create", "update", "delete")...)
	timer := time.NewTimer(0)
	pending := true
	for {
		select {
		case <-events:
			if !pending {
				pending = true
				timer.Reset(imageSettleTime)
			}
		case <-timer.C:
			pending = false
			if err := changed(ctx); err != nil {
				return err
			}
		case err := <-errs:
			if err == nil {
				err = errors.New("containerd's event stream ended")
			}
			return err
		}
	}
}
