package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// Namespace is the containerd namespace of the kubelet's images.
	Namespace = "k8s.io"

	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
)

// Connect returns a client of the node's containerd.
func Connect(socket string) (*client.Client, error) {
	c, err := client.New(socket, client.WithDefaultNamespace(Namespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	return c, nil
}

// imported is what an archive contains.
type imported struct {
	Images map[string]string `json:"images"` // name to digest
	SHA256 string            `json:"sha256"`
	// Unusable maps the images that this machine cannot run to the reason.
	Unusable map[string]string `json:"unusable,omitempty"`
}

// unusable returns an error that lists the unusable images, nil if there are none.
func (i imported) unusable() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(i.Unusable)) {
		errs = append(errs, fmt.Errorf("image %s: %s", name, i.Unusable[name]))
	}
	return errors.Join(errs...)
}

// importOptions are the options of one import.
type importOptions struct {
	allPlatforms bool
	progress     func(read int64)
}

// importFile imports one archive. It returns the images imported so far also with an error. The error does not name the
// archive. Images that this machine cannot use are no error; see imported.unusable.
func importFile(ctx context.Context, c *client.Client, f io.Reader, opts importOptions) (_ imported, err error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	sum := sha256.New()
	counted := &counter{ctx: ctx, r: io.TeeReader(f, sum), report: opts.progress}
	stream, err := plain(counted)
	if err != nil {
		return imported{}, err
	}
	defer stream.Close() //nolint:errcheck // opened for reading
	// The lease protects the content until its image record exists.
	ctx, store, release, err := withLease(ctx, c)
	if err != nil {
		return imported{}, err
	}
	defer func() { err = errors.Join(err, release()) }()

	index, err := archive.ImportIndex(ctx, store, stream)
	if err != nil {
		return imported{}, describeDamage(err)
	}
	// Read the rest of the file: it is part of the hash, and may show that the file is damaged.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return imported{}, describeDamage(err)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return imported{}, err
	}
	list, err := namesIn(ctx, store, index)
	if err != nil {
		return imported{}, err
	}
	out := imported{Images: map[string]string{}, SHA256: hex.EncodeToString(sum.Sum(nil))}
	for _, n := range list {
		chosen, err := n.choose(ctx, store, platforms.DefaultSpec())
		if err != nil {
			if out.Unusable == nil {
				out.Unusable = map[string]string{}
			}
			out.Unusable[n.name] = err.Error()
			continue
		}
		target, err := n.put(ctx, c, store, chosen, opts.allPlatforms)
		if err != nil {
			return out, fmt.Errorf("image %s: %w", n.name, err)
		}
		out.Images[n.name] = target.String()
	}
	return out, nil
}

// namesIn lists the images that an archive's index names, each once.
func namesIn(ctx context.Context, store content.Provider, index ocispec.Descriptor) ([]named, error) {
	manifests, err := images.Children(ctx, store, index)
	if err != nil {
		return nil, err
	}
	var list []named
	for _, m := range manifests {
		name := nameOf(m)
		if name == "" {
			continue
		}
		if i := slices.IndexFunc(list, func(n named) bool { return n.name == name }); i >= 0 {
			list[i].descs = append(list[i].descs, m)
			continue
		}
		list = append(list, named{name, []ocispec.Descriptor{m}})
	}
	if len(list) == 0 {
		return nil, errNoName
	}
	return list, nil
}

// nameOf returns the full name of an entry of an archive's index, "" if it has none.
func nameOf(m ocispec.Descriptor) string {
	// containerd's annotation always holds a complete name, possibly a short one.
	if n, err := reference.ParseDockerRef(m.Annotations[images.AnnotationImageName]); err == nil {
		return n.String()
	}
	return fullName(m.Annotations[ocispec.AnnotationRefName])
}

// put unpacks the chosen manifest of an image and creates the image's record, which it pins.
func (n named) put(ctx context.Context, c *client.Client, store content.Store, chosen choice,
	allPlatforms bool) (digest.Digest, error) {
	if allPlatforms && len(n.descs) > 1 {
		var err error
		if chosen.target, err = joined(ctx, store, n.descs); err != nil {
			return "", err
		}
	}
	if err := keepContent(ctx, store, chosen, allPlatforms); err != nil {
		return "", err
	}
	img := images.Image{Name: n.name, Target: chosen.target, Labels: map[string]string{pinnedLabel: pinnedValue}}
	img.Target.Annotations = nil // they describe the entry in the archive
	// Unpack and sync before creating the record: an image that has a record is usable, even after a power failure.
	unpacked := client.NewImageWithPlatform(c, images.Image{Name: n.name, Target: chosen.leaf},
		platforms.Only(platforms.DefaultSpec()))
	if err := unpacked.Unpack(ctx, "", client.WithUnpackApplyOpts(diff.WithSyncFs(true))); err != nil {
		return "", fmt.Errorf("unpack: %w", err)
	}
	before, err := c.ImageService().Get(ctx, img.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return "", err
	}
	if err := putImage(ctx, c.ImageService(), img); err != nil {
		return "", err
	}
	if err == nil && before.Target.Digest != img.Target.Digest && before.Labels[pinnedLabel] == pinnedValue {
		// Leave the previous target of the name to garbage collection, unless something else refers to it.
		if err := unpin(ctx, c, img.Name, before.Target.Digest.String()); err != nil {
			return "", err
		}
	}
	// A pod may also refer to the image by digest.
	if byDigest := withDigest(n.name, img.Target.Digest); byDigest != "" {
		img.Name = byDigest
		if err := putImage(ctx, c.ImageService(), img); err != nil {
			return "", err
		}
	}
	return img.Target.Digest, nil
}

// putImage creates an image's record, or updates target and pin of an existing one; its other labels stay.
func putImage(ctx context.Context, store images.Store, img images.Image) error {
	if _, err := store.Create(ctx, img); !errdefs.IsAlreadyExists(err) {
		return err
	}
	_, err := store.Update(ctx, img, "target", "labels."+pinnedLabel)
	if errdefs.IsNotFound(err) {
		_, err = store.Create(ctx, img) // it was removed meanwhile
	}
	return err
}

// keepContent labels the content of an image that containerd's garbage collector must keep: all of it, or the manifest
// for this machine and the indexes that lead to it.
func keepContent(ctx context.Context, store content.Store, chosen choice, all bool) error {
	children := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		below, err := images.Children(ctx, store, d)
		if errdefs.IsNotFound(err) && d.Digest != chosen.target.Digest {
			return nil, images.ErrSkipDesc // for another platform, and not in the archive
		}
		if err != nil || all || !images.IsIndexType(d.MediaType) {
			return below, err
		}
		return slices.DeleteFunc(below, func(c ocispec.Descriptor) bool {
			return c.Digest != chosen.leaf.Digest && !images.IsIndexType(c.MediaType)
		}), nil
	})
	return images.Walk(ctx, images.SetChildrenLabels(store, children), chosen.target)
}

// joined writes one index of all manifests that an archive lists under one name. Later entries, which are newer, come
// first.
func joined(ctx context.Context, store content.Store, descs []ocispec.Descriptor) (ocispec.Descriptor, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, d := range slices.Backward(descs) {
		below, err := leaves(ctx, store, d, d, 0)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if d.Platform == nil && len(below) == 1 && !below[0].any {
			d.Platform = &below[0].platform
		}
		d.Annotations = nil
		index.Manifests = append(index.Manifests, d)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode index: %w", err)
	}
	out := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw),
		Size: int64(len(raw))}
	return out, content.WriteBlob(ctx, store, "index-"+out.Digest.String(), bytes.NewReader(raw), out)
}

// withDigest returns an image's name with the digest in place of the tag, "" if the name is invalid.
func withDigest(name string, d digest.Digest) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(n), d)
	if err != nil {
		return ""
	}
	return byDigest.String()
}

// fullName returns the full image name for a reference of an OCI archive, "" for a bare tag, which names no image.
func fullName(ref string) string {
	if !strings.ContainsAny(ref, "/:@") {
		return ""
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ""
	}
	return named.String()
}

// describeDamage returns an error that describes what is wrong with the archive, for errors of a damaged one.
func describeDamage(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "unexpected EOF"):
		return fmt.Errorf("the archive is cut short: %w", err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("its zstd window is larger than %d MiB, which the reader would need as memory: compress it again without --long and --ultra, or with --long=27", maxWindow>>20)
	case strings.Contains(err.Error(), "unrecognized image format"):
		return errors.New("it contains no image: neither an OCI layout nor docker's manifest.json")
	}
	return err
}

// counter reports how much of a file has been read, and fails once its context has ended.
type counter struct {
	ctx    context.Context
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.report != nil {
		c.report(c.n)
	}
	return n, err
}

// present reports whether the store has all images of an archive. It restores missing pins.
func present(ctx context.Context, c *client.Client, want imported) (bool, error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	for name, digest := range want.Images {
		img, err := c.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if img.Target.Digest.String() != digest {
			return false, nil
		}
		if img.Labels[pinnedLabel] != pinnedValue {
			img.Labels = map[string]string{pinnedLabel: pinnedValue}
			if _, err := c.ImageService().Update(ctx, img, "labels."+pinnedLabel); errdefs.IsNotFound(err) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
	}
	return len(want.Images)+len(want.Unusable) > 0, nil
}

// unpin removes the pin from an image if the name still refers to the imported digest. The image's name by digest stays
// pinned while another imported tag of the repository refers to the same digest.
func unpin(ctx context.Context, c *client.Client, name, digest string) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	all, err := c.ImageService().List(ctx, "target.digest=="+digest)
	if err != nil {
		return err
	}
	repository := RepositoryOf(name)
	byDigest := repository + "@" + digest
	kept := slices.ContainsFunc(all, func(img images.Image) bool {
		return img.Name != name && img.Name != byDigest && RepositoryOf(img.Name) == repository &&
			img.Labels[pinnedLabel] == pinnedValue
	})
	for _, img := range all {
		if img.Name != name && (img.Name != byDigest || kept) || img.Labels[pinnedLabel] != pinnedValue {
			continue
		}
		delete(img.Labels, pinnedLabel)
		if _, err := c.ImageService().Update(ctx, img, "labels"); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// RepositoryOf removes tag and digest from an image's name. It returns a repository's name unchanged.
func RepositoryOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

// open opens a regular file and returns its identity.
func open(path string) (*os.File, identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, identity{}, err
	}
	id, err := identify(f)
	if err != nil {
		_ = f.Close()
		return nil, identity{}, err
	}
	return f, id, nil
}
