package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
)

const (
	// Namespace is containerd's where the kubelet's images are.
	Namespace = "k8s.io"

	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
)

// Connect opens a client of the node's containerd.
func Connect(socket string) (*client.Client, error) {
	c, err := client.New(socket, client.WithDefaultNamespace(Namespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	return c, nil
}

// imported is what came out of an archive.
type imported struct {
	Images map[string]string `json:"images"` // name and digest
	SHA256 string            `json:"sha256"`
}

// importOptions choose what becomes of an archive's images.
type importOptions struct {
	allPlatforms bool
	progress     func(read int64)
}

// importFile imports one archive. Errors do not name it.
func importFile(ctx context.Context, c *client.Client, f io.Reader, opts importOptions) (imported, error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	sum := sha256.New()
	counted := &counter{ctx: ctx, r: io.TeeReader(f, sum), report: opts.progress}
	stream, err := plain(counted)
	if err != nil {
		return imported{}, err
	}
	defer stream.Close() //nolint:errcheck // opened for reading
	// What is imported is referenced by its image record at the end; the lease keeps it until it is unpacked.
	ctx, release, err := c.WithLease(ctx)
	if err != nil {
		return imported{}, err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()

	matcher := platforms.Default()
	importOpts := []client.ImportOpt{
		client.WithImageRefTranslator(fullName),
		client.WithImageLabels(map[string]string{pinnedLabel: pinnedValue}),
		client.WithImportPlatform(matcher),
	}
	if opts.allPlatforms {
		importOpts = append(importOpts, client.WithAllPlatforms(true), client.WithSkipMissing())
	}
	list, err := c.Import(ctx, stream, importOpts...)
	if err != nil {
		return imported{}, explain(err)
	}
	// The rest of the file counts for the hash, and may show that it is damaged.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return imported{}, explain(err)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return imported{}, err
	}
	out := imported{Images: map[string]string{}, SHA256: hex.EncodeToString(sum.Sum(nil))}
	for _, img := range list {
		if err := client.NewImageWithPlatform(c, img, matcher).Unpack(ctx, ""); err != nil {
			if errdefs.IsNotFound(err) {
				return imported{}, fmt.Errorf("image %s is not for %s", img.Name, platforms.DefaultString())
			}
			return imported{}, fmt.Errorf("unpack %s: %w", img.Name, err)
		}
		out.Images[img.Name] = img.Target.Digest.String()
		// A pod may name the image by digest as well.
		named, err := reference.ParseNormalizedNamed(img.Name)
		if err != nil {
			continue
		}
		byDigest, err := reference.WithDigest(reference.TrimNamed(named), img.Target.Digest)
		if err != nil {
			continue
		}
		img.Name = byDigest.String()
		if _, err := c.ImageService().Create(ctx, img); err != nil && !errdefs.IsAlreadyExists(err) {
			return imported{}, err
		}
	}
	if len(out.Images) == 0 {
		return imported{}, errNoName
	}
	return out, nil
}

// fullName takes a reference of an OCI archive: a full name as it is, and nothing for a bare tag, which
// does not say which image it is.
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

// explain puts what a damaged archive leads to into words.
func explain(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "unexpected EOF"):
		return fmt.Errorf("the archive is cut short: %w", err)
	case strings.Contains(err.Error(), "unrecognized image format"):
		return errors.New("there is no image in it: neither an OCI layout nor docker's manifest.json")
	}
	return err
}

// counter tells how far a file has been read and ends with its context.
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

// present says whether the store has all these images, pinned.
func present(ctx context.Context, c *client.Client, want map[string]string) (bool, error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	for name, digest := range want {
		img, err := c.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if img.Target.Digest.String() != digest || img.Labels[pinnedLabel] != pinnedValue {
			return false, nil
		}
	}
	return len(want) > 0, nil
}

// unpin leaves an image to the kubelet's garbage collection, if it is still the one that was imported.
func unpin(ctx context.Context, c *client.Client, name, digest string) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	all, err := c.ImageService().List(ctx, "target.digest=="+digest)
	if err != nil {
		return err
	}
	repository, _, _ := strings.Cut(name, "@")
	if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
		repository = repository[:i]
	}
	for _, img := range all {
		if img.Name != name && img.Name != repository+"@"+digest {
			continue
		}
		delete(img.Labels, pinnedLabel)
		if _, err := c.ImageService().Update(ctx, img, "labels"); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// open opens a regular file and says what identifies it.
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
