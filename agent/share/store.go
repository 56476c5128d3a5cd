package share

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umiak-io/umiak/agent/images"
)

// Store is what this node has. What it has not is errdefs.ErrNotFound.
type Store interface {
	// Size is that of a blob.
	Size(ctx context.Context, d digest.Digest) (int64, error)
	// Open reads a blob, which may be removed meanwhile.
	Open(ctx context.Context, d digest.Digest) (content.ReaderAt, error)
	// Image is the digest of an image's manifest or index.
	Image(ctx context.Context, name string) (digest.Digest, error)
}

// store is the node's containerd.
type store struct{ c *client.Client }

func openStore(socket string) (store, error) {
	c, err := images.Connect(socket)
	return store{c}, err
}

func (s store) Close() error { return s.c.Close() }

func (s store) Size(ctx context.Context, d digest.Digest) (int64, error) {
	i, err := s.c.ContentStore().Info(namespaces.WithNamespace(ctx, images.Namespace), d)
	return i.Size, err
}

func (s store) Open(ctx context.Context, d digest.Digest) (content.ReaderAt, error) {
	return s.c.ContentStore().ReaderAt(namespaces.WithNamespace(ctx, images.Namespace), ocispec.Descriptor{Digest: d})
}

func (s store) Image(ctx context.Context, name string) (digest.Digest, error) {
	i, err := s.c.ImageService().Get(namespaces.WithNamespace(ctx, images.Namespace), name)
	return i.Target.Digest, err
}

// readAhead is how much is taken from containerd at once: each is a request over its socket.
const readAhead = 256 << 10

// blob is a blob as http.ServeContent reads it.
type blob struct {
	r    io.ReaderAt
	size int64
	off  int64
	buf  []byte // what was read ahead and not taken yet
	mem  []byte
	// taken is how much has been read in all.
	taken int64
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
	b.buf, b.off, b.taken = b.buf[n:], b.off+int64(n), b.taken+int64(n)
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
