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

// Selection describes which platforms of an image are packed.
type Selection struct {
	Platforms []string // such as linux/arm/v7; the image must support each of them
	All       bool     // also pack all other content that the source has
}

// anyOf matches a platform that any of its matchers matches.
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

// CheckPackable returns an error if an image of the node's store cannot be packed.
func CheckPackable(ctx context.Context, socket, ref string, sel Selection) error {
	return inStore(ctx, socket, ref, func(ctx context.Context, store content.Store, img images.Image) error {
		_, err := sel.matcher(ctx, store, img)
		return err
	})
}

// Pack writes an image of the node's store to a new archive, compressed with zstd.
func Pack(ctx context.Context, socket, ref, file string, sel Selection) error {
	return inStore(ctx, socket, ref, func(ctx context.Context, store content.Store, img images.Image) error {
		return sel.write(ctx, store, []images.Image{img}, file)
	})
}

func inStore(ctx context.Context, socket, ref string,
	f func(context.Context, content.Store, images.Image) error) error {
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
		return fmt.Errorf("query containerd at %s: %w", socket, err)
	}
	return f(ctx, c.ContentStore(), img)
}

// Repack writes the selected content of an archive's images to a new archive, and returns the images' names. It needs
// no containerd; the content passes through a temporary folder next to the new archive.
func Repack(ctx context.Context, from, file string, sel Selection) (names []string, err error) {
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
		_, err = io.Copy(io.Discard, stream) // the rest may show that the file is damaged
	}
	if err != nil {
		return nil, describeDamage(err)
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
	return names, sel.write(ctx, store, list, file)
}

var errNoName = errors.New("no image in it has a full name such as registry/repository:tag")

// matcher matches the platforms to pack. It is an error if the store lacks content for one of them.
func (s Selection) matcher(ctx context.Context, store content.Provider, img images.Image) (anyOf, error) {
	var out anyOf
	for _, name := range s.Platforms {
		p, err := platforms.Parse(name)
		if err != nil {
			return nil, err
		}
		// arm64 also runs arm content, and armv7 armv6: accept that if there is nothing closer.
		m := platforms.OnlyStrict(p)
		err = hasAll(ctx, store, img, m, name)
		if err != nil {
			m = platforms.Only(p)
			if hasAll(ctx, store, img, m, name) != nil {
				return nil, err
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// hasAll returns an error unless the store has all content of the image for the platform called name.
func hasAll(ctx context.Context, store content.Provider, img images.Image, m platforms.MatchComparer,
	name string) error {
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
		// A store has content for other platforms only if the import asked for it.
		err = fmt.Errorf("content of %s is missing for %s; `umiak images import --all-platforms` keeps the content for other machines", img.Name, name)
	}
	return err
}

// write writes the archive. Equal content gives an equal file.
func (s Selection) write(ctx context.Context, store content.Store, list []images.Image, file string) (err error) {
	var m anyOf
	for _, img := range list {
		more, err := s.matcher(ctx, store, img)
		if err != nil {
			return err
		}
		m = append(m, more...)
	}
	// docker's manifest.json has no defined order; an OCI layout suffices.
	opts := []archive.ExportOpt{archive.WithImages(list), archive.WithPlatform(m), archive.WithSkipMissing(store),
		archive.WithSkipDockerManifest()}
	if s.All {
		opts = append(opts, archive.WithAllPlatforms())
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Most layers are compressed already.
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	return errors.Join(archive.Export(ctx, store, z, opts...), z.Close())
}
