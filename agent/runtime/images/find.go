package images

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Finder looks up images that were imported on this node.
type Finder struct{ c *client.Client }

// NewFinder returns a finder. It connects when it is asked.
func NewFinder(socket string) (*Finder, error) {
	c, err := Connect(socket)
	if err != nil {
		return nil, err
	}
	return &Finder{c}, nil
}

// Imported returns what the name of an imported image stands for. An image that was pulled, or whose archive was taken away since, is not
// one of them.
func (f *Finder) Imported(ctx context.Context, name string) (_ ocispec.Descriptor, ok bool) {
	img, err := f.c.ImageService().Get(namespaces.WithNamespace(ctx, Namespace), name)
	if err != nil {
		return ocispec.Descriptor{}, false
	}
	return img.Target, img.Labels[pinnedLabel] == pinnedValue
}

// Content is an image by what is in it, whatever its names are.
type Content struct {
	ID       string   // the digest of its configuration, by which the kubelet knows it
	Imported []string // the names under which it was imported
	Others   []string // its other names
}

// Contents lists the node's images. ids remembers what images are between calls.
func (f *Finder) Contents(ctx context.Context, ids map[digest.Digest]string) ([]Content, error) {
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
		id, known := ids[img.Target.Digest]
		if !known {
			config, err := images.Config(ctx, f.c.ContentStore(), img.Target, platforms.Default())
			if err != nil {
				continue // not for this machine, or not complete: the kubelet does not see it either
			}
			id = config.Digest.String()
			ids[img.Target.Digest] = id
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
	maps.DeleteFunc(ids, func(d digest.Digest, _ string) bool { return !there[d] })
	slices.Sort(order)
	out := make([]Content, len(order))
	for i, id := range order {
		out[i] = *by[id]
	}
	return out, nil
}

// imageEvents are filters for containerd's events of some kinds about images.
func imageEvents(kinds ...string) []string {
	for i, k := range kinds {
		kinds[i] = `namespace==` + Namespace + `,topic=="/images/` + k + `"`
	}
	return kinds
}

// settle is how long images are left alone before Follow reports them: an import makes several names.
const settle = 300 * time.Millisecond

// Follow calls changed once at the beginning, and whenever an image has got or lost a name, until ctx ends.
func (f *Finder) Follow(ctx context.Context, changed func(context.Context) error) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, Namespace))
	defer cancel()
	events, errs := f.c.Subscribe(ctx, imageEvents("create", "update", "delete")...)
	quiet := time.NewTimer(0)
	pending := true
	for {
		select {
		case <-events:
			if !pending {
				pending = true
				quiet.Reset(settle)
			}
		case <-quiet.C:
			pending = false
			if err := changed(ctx); err != nil {
				return err
			}
		case err := <-errs:
			if err == nil {
				err = errors.New("containerd's events ended")
			}
			return err
		}
	}
}
