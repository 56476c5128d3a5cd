package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// named is an image of an archive: its name and the descriptors that the archive's index lists under it. Usually that
// is one manifest or index, but an index.json may list one manifest per platform.
type named struct {
	name  string
	descs []ocispec.Descriptor
}

// choice is what an image's name refers to on one machine.
type choice struct {
	target   ocispec.Descriptor // what the name refers to: the leaf, or an index that contains it
	leaf     ocispec.Descriptor // the manifest that this machine runs
	platform ocispec.Platform
}

// leaf is one manifest of an image.
type leaf struct {
	root, desc ocispec.Descriptor
	platform   ocispec.Platform
	any        bool  // neither index nor configuration states a platform
	missing    error // the blob that the archive lacks; nil if it is complete
}

// maxIndexDepth bounds the nesting of indexes.
const maxIndexDepth = 4

// leaves lists the manifests below a descriptor. A manifest that an index lists and the archive lacks is returned as
// missing: it may be for other machines.
func leaves(ctx context.Context, store content.Provider, root, desc ocispec.Descriptor, depth int) ([]leaf, error) {
	if p := desc.Platform; p != nil && (p.OS == "unknown" || p.Architecture == "unknown") {
		return nil, nil // an attestation
	}
	if images.IsIndexType(desc.MediaType) {
		if depth >= maxIndexDepth {
			return nil, fmt.Errorf("more than %d levels of indexes", maxIndexDepth)
		}
		children, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) && depth > 0 {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var out []leaf
		for _, c := range children {
			if c.Platform == nil && images.IsIndexType(c.MediaType) {
				c.Platform = desc.Platform
			}
			below, err := leaves(ctx, store, root, c, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		}
		return out, nil
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, nil // a signature, a chart
	}
	l := leaf{root: root, desc: desc}
	manifest, err := images.Children(ctx, store, desc)
	switch {
	case errdefs.IsNotFound(err) && desc.Platform == nil:
		return nil, nil // its platform is unknown
	case errdefs.IsNotFound(err):
		l.platform, l.missing = platforms.Normalize(*desc.Platform), err
		return []leaf{l}, nil
	case err != nil:
		return nil, err
	}
	for _, part := range manifest {
		if _, err := size(ctx, store, part); err != nil {
			if !errdefs.IsNotFound(err) {
				return nil, err
			}
			l.missing = err
		}
	}
	switch config := manifest[0]; {
	case desc.Platform != nil:
		l.platform = platforms.Normalize(*desc.Platform)
	case !images.IsConfigType(config.MediaType):
		return nil, nil // not an image to run
	default:
		p, err := images.ConfigPlatform(ctx, store, config)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the image's configuration: %w", err)
		}
		l.platform, l.any = p, p.Architecture == ""
	}
	return []leaf{l}, nil
}

func size(ctx context.Context, store content.Provider, desc ocispec.Descriptor) (int64, error) {
	r, err := store.ReaderAt(ctx, desc)
	if err != nil {
		return 0, err
	}
	return r.Size(), r.Close()
}

// choose selects the manifest that the machine runs. If there is none, the error lists the platforms that the archive
// has. It is also an error if the manifest's content is incomplete.
func (n named) choose(ctx context.Context, store content.Provider, machine ocispec.Platform) (choice, error) {
	var all []leaf
	for _, d := range n.descs {
		below, err := leaves(ctx, store, d, d, 0)
		if err != nil {
			return choice{}, err
		}
		all = append(all, below...)
	}
	slices.Reverse(all) // of two equal platforms, the later entry is the newer one
	var incomplete error
	for _, m := range []platforms.MatchComparer{platforms.OnlyStrict(machine), compatible(machine)} {
		var fit []leaf
		for _, l := range all {
			switch {
			case !l.any && !m.Match(l.platform):
			case l.missing != nil:
				incomplete = fmt.Errorf("the archive lacks content for %s: %w", platforms.Format(l.platform), l.missing)
			default:
				fit = append(fit, l)
			}
		}
		if len(fit) == 0 {
			continue
		}
		slices.SortStableFunc(fit, func(a, b leaf) int {
			switch {
			case m.Less(a.platform, b.platform):
				return -1
			case m.Less(b.platform, a.platform):
				return 1
			}
			return 0
		})
		best := fit[0]
		c := choice{target: best.root, leaf: best.desc, platform: best.platform}
		// containerd resolves an index by its own rules. If they select another manifest, the name refers to the
		// manifest instead of the index.
		if got, err := resolved(ctx, store, c.target, machine); err != nil || got != best.desc.Digest {
			c.target = best.desc
		}
		return c, nil
	}
	if incomplete != nil {
		return choice{}, incomplete
	}
	var there []string
	for _, l := range all {
		if p := platforms.Format(l.platform); !slices.Contains(there, p) {
			there = append(there, p)
		}
	}
	slices.Sort(there)
	if len(there) == 0 {
		return choice{}, errors.New("it contains no runnable image")
	}
	return choice{}, fmt.Errorf("it is for %s, not for %s", strings.Join(there, ", "), platforms.Format(machine))
}

// compatible matches the platforms that a machine runs besides its own: older variants of its architecture, and 32-bit
// arm on arm64. Unlike platforms.Only it does not match 386 on amd64: many kernels support neither.
func compatible(machine ocispec.Platform) platforms.MatchComparer {
	return native{platforms.Only(machine), machine.Architecture}
}

type native struct {
	platforms.MatchComparer
	architecture string
}

// Match implements platforms.Matcher.
func (n native) Match(p ocispec.Platform) bool {
	sameFamily := p.Architecture == n.architecture || n.architecture == "arm64" && p.Architecture == "arm"
	return sameFamily && n.MatchComparer.Match(p)
}

// resolved returns the manifest that containerd selects from an index on this machine.
func resolved(ctx context.Context, store content.Provider, target ocispec.Descriptor,
	machine ocispec.Platform) (digest.Digest, error) {
	var found digest.Digest
	m := platforms.Only(machine)
	h := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), m), m, 1)
	walk := func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsManifestType(d.MediaType) {
			found = d.Digest
			return nil, images.ErrSkipDesc
		}
		return h(ctx, d)
	}
	err := images.Walk(ctx, images.HandlerFunc(walk), target)
	return found, err
}
