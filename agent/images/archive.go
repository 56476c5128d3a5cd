package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// suffixes are what an archive's name may end with in the folder. What is inside is found by looking.
var suffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// isArchive says whether a file of this name is to be imported. Names that begin with a dot are those of
// files in the making.
func isArchive(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) && len(name) > len(s) {
			return true
		}
	}
	return false
}

var errNotTar = errors.New("not a tar archive, nor one compressed with gzip or zstd")

// maxWindow bounds what a zstd archive can make the reader allocate; --long=27 is what zstd itself
// accepts unasked.
const maxWindow = 128 << 20

// plain returns the tar stream inside an archive.
func plain(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	// An error is seen again by whoever reads on.
	head, _ := b.Peek(512)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("read gzip: %w", err)
		}
		return z, nil
	case isZstd(head):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("read zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	case isTar(head):
		return io.NopCloser(b), nil
	case len(head) == 0:
		return nil, errors.New("the file is empty")
	}
	return nil, errNotTar
}

// isZstd knows a frame, and a frame to be skipped, by its magic number.
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// isTar checks the first header, which has a checksum in every kind of tar.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF) // a long name goes on in the next block
}
