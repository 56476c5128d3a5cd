package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Keep says what of an image that is made for several kinds of machines is kept.
type Keep struct {
	Platforms []string // as linux/arm/v7: the image must be there for each
	All       bool     // and whatever else is there
}

// anyOf matches what one of the platforms takes.
type anyOf []platforms.MatchComparer

// Match implements platforms.MatchComparer.
func (a anyOf) Match(p ocispec.Platform) bool {
	return slices.ContainsFunc(a, func(m platforms.MatchComparer) bool { return m.Match(p) })
}

// Less implements platforms.MatchComparer.
func (a anyOf) Less(p, q ocispec.Platform) bool {
	for _, m := range a {
		if m.Match(p) || m.Match(q) {
			return m.Less(p, q)
		}
	}
	return false
}

// InStore returns an error if an image of the node's store cannot be packed.
func InStore(ctx context.Context, socket, ref string, keep Keep) error {
	return inStore(ctx, socket, ref, func(ctx context.Context, store content.Store, img images.Image) error {
		_, err := keep.matcher(ctx, store, img)
		return err
	})
}

// Pack writes an image of the node's store into a new archive, compressed with zstd.
func Pack(ctx context.Context, socket, ref, file string, keep Keep) error {
	return inStore(ctx, socket, ref, func(ctx context.Context, store content.Store, img images.Image) error {
		return keep.write(ctx, store, []images.Image{img}, file)
	})
}

func inStore(ctx context.Context, socket, ref string, f func(context.Context, content.Store, images.Image) error) error {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return err
	}
	c, err := Connect(socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	ctx = namespaces.WithNamespace(ctx, Namespace)
	img, err := c.ImageService().Get(ctx, named.String())
	if errdefs.IsNotFound(err) {
		return errors.New("it is not in this node's store; `umiak images list` shows what is")
	}
	if err != nil {
		return fmt.Errorf("ask containerd at %s: %w", socket, err)
	}
	return f(ctx, c.ContentStore(), img)
}

// Repack writes what is to be kept of an archive's images into a new one, and returns their names. No containerd runs for
// it: the content goes through a folder beside the new archive.
func Repack(ctx context.Context, from, file string, keep Keep) (names []string, err error) {
	f, _, err := open(from)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	stream, err := plain(&counter{ctx: ctx, r: f})
	if err != nil {
		return nil, err
	}
	defer stream.Close() //nolint:errcheck // opened for reading
	scratch, err := os.MkdirTemp(filepath.Dir(file), ".content-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	store, err := local.NewStore(scratch)
	if err != nil {
		return nil, err
	}
	desc, err := archive.ImportIndex(ctx, store, stream)
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // what comes behind may show that it is damaged
	}
	if err != nil {
		return nil, explain(err)
	}
	all, err := namesIn(ctx, store, desc)
	if err != nil {
		return nil, err
	}
	var list []images.Image
	for _, n := range all {
		target := n.descs[0]
		if len(n.descs) > 1 {
			if target, err = joined(ctx, store, n.descs); err != nil {
				return nil, err
			}
		}
		list, names = append(list, images.Image{Name: n.name, Target: target}), append(names, n.name)
	}
	return names, keep.write(ctx, store, list, file)
}

var errNoName = errors.New("no image in it has a full name, as registry/repository:tag")

// matcher says which parts of an image are kept. It is an error if there is nothing for a platform, or not all of it.
func (k Keep) matcher(ctx context.Context, store content.Provider, img images.Image) (anyOf, error) {
	var out anyOf
	for _, name := range k.Platforms {
		p, err := platforms.Parse(name)
		if err != nil {
			return nil, err
		}
		// An arm64 also runs what is for arm, and an armv7 what is for armv6: that is taken where there is nothing better.
		m := platforms.OnlyStrict(p)
		err = whole(ctx, store, img, m, name)
		if err != nil {
			m = platforms.Only(p)
			if whole(ctx, store, img, m, name) != nil {
				return nil, err
			}
		}
		out = append(out, m)
	}
	return out, nil
}

func whole(ctx context.Context, store content.Provider, img images.Image, m platforms.MatchComparer, name string) error {
	if images.IsManifestType(img.Target.MediaType) {
		is, err := images.Platforms(ctx, store, img.Target)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(is, m.Match) {
			return fmt.Errorf("%s is not for %s", img.Name, name)
		}
	}
	found, _, _, missing, err := images.Check(ctx, store, img.Target, m)
	if err == nil && (!found || len(missing) > 0) {
		// Content for other machines is in a store only if it was asked for.
		err = fmt.Errorf("%s is not there for %s; `umiak images import --all-platforms` keeps what is for other machines", img.Name, name)
	}
	return err
}

// write makes the archive. Equal content makes an equal file.
func (k Keep) write(ctx context.Context, store content.Store, list []images.Image, file string) (err error) {
	var m anyOf
	for _, img := range list {
		more, err := k.matcher(ctx, store, img)
		if err != nil {
			return err
		}
		m = append(m, more...)
	}
	// docker's own list of contents has no order; an OCI layout is enough.
	opts := []archive.ExportOpt{archive.WithImages(list), archive.WithPlatform(m), archive.WithSkipMissing(store), archive.WithSkipDockerManifest()}
	if k.All {
		opts = append(opts, archive.WithAllPlatforms())
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Layers are compressed already, most of them.
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	return errors.Join(archive.Export(ctx, store, z, opts...), z.Close())
}
