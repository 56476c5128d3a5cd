package imageshare

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umiak-io/umiak/agent/runtime/images"
)

// Store gives access to this node's images. A missing object is errdefs.ErrNotFound.
type Store interface {
	// Info returns a blob's size, and labels that record where it was pulled from.
	Info(ctx context.Context, d digest.Digest) (content.Info, error)
	// Open opens a blob for reading. It may be removed while it is read.
	Open(ctx context.Context, d digest.Digest) (content.ReaderAt, error)
	// Image returns the digest of an image's manifest or index.
	Image(ctx context.Context, name string) (digest.Digest, error)
	// Images returns the digests of all images of a repository, whose name includes the registry.
	Images(ctx context.Context, repository string) ([]digest.Digest, error)
}

// store is the Store of the node's containerd.
type store struct{ c *client.Client }

func openStore(socket string) (store, error) {
	c, err := images.Connect(socket)
	return store{c}, err
}

func (s store) Close() error { return s.c.Close() }

func (s store) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	return s.c.ContentStore().Info(namespaces.WithNamespace(ctx, images.Namespace), d)
}

func (s store) Open(ctx context.Context, d digest.Digest) (content.ReaderAt, error) {
	return s.c.ContentStore().ReaderAt(namespaces.WithNamespace(ctx, images.Namespace), ocispec.Descriptor{Digest: d})
}

func (s store) Image(ctx context.Context, name string) (digest.Digest, error) {
	i, err := s.c.ImageService().Get(namespaces.WithNamespace(ctx, images.Namespace), name)
	return i.Target.Digest, err
}

func (s store) Images(ctx context.Context, repository string) ([]digest.Digest, error) {
	named := "name~=" + strconv.Quote("^"+regexp.QuoteMeta(repository)+"[:@]")
	list, err := s.c.ImageService().List(namespaces.WithNamespace(ctx, images.Namespace), named)
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, i := range list {
		if images.RepositoryOf(i.Name) == repository && !slices.Contains(out, i.Target.Digest) {
			out = append(out, i.Target.Digest)
		}
	}
	return out, nil
}

// readAhead is the size of a read from containerd: each is a request over its socket.
const readAhead = 256 << 10

// blob is an io.ReadSeeker over a blob, for http.ServeContent.
type blob struct {
	r    io.ReaderAt
	size int64
	off  int64
	buf  []byte // read ahead and not yet returned
	mem  []byte
	// total is the number of bytes read so far.
	total int64
	// before is called before each read.
	before func() error
}

func (b *blob) Read(p []byte) (int, error) {
	if err := b.before(); err != nil {
		return 0, err
	}
	if len(b.buf) == 0 {
		left := b.size - b.off
		if left <= 0 {
			return 0, io.EOF
		}
		if b.mem == nil {
			b.mem = make([]byte, min(left, readAhead))
		}
		n, err := b.r.ReadAt(b.mem[:min(left, int64(len(b.mem)))], b.off)
		if n == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		b.buf = b.mem[:n]
	}
	n := copy(p, b.buf)
	b.buf, b.off, b.total = b.buf[n:], b.off+int64(n), b.total+int64(n)
	return n, nil
}

func (b *blob) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.off
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	if offset != b.off {
		b.off, b.buf = offset, nil
	}
	return offset, nil
}
