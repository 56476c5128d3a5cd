package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// suffixes are the endings of archives' names, in lower case; case is ignored. The content alone decides how an archive
// is read.
var suffixes = []string{
	".tar", ".oci",
	".tar.gz", ".tgz", ".oci.gz", ".tar.gzip",
	".tar.zst", ".tzst", ".tar.zstd", ".oci.zst",
	".tar.bz2", ".tbz2", ".tbz", ".tb2", ".oci.bz2",
	// Formats that plain rejects with an explanation.
	".tar.xz", ".txz", ".oci.xz", ".tar.lz4", ".tlz4", ".oci.lz4", ".tar.lzma", ".tlz", ".tar.lz", ".tar.z", ".tar.br",
	".tar.sz",
}

// isArchive reports whether the name is that of an archive. A name that begins with a dot is that of a file still being
// written (rsync, scp with a temporary name).
func isArchive(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	name = strings.ToLower(name)
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) && len(name) > len(s) {
			return true
		}
	}
	return false
}

// unfinished lists the name endings that programs use for files they are still writing.
var unfinished = []string{".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", ".swp", "~"}

// isUnfinished reports whether a file's name marks it as incomplete.
func isUnfinished(name string) bool {
	if strings.HasPrefix(name, ".") {
		return true
	}
	name = strings.ToLower(name)
	for _, s := range unfinished {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

const accepted = "tar, or tar compressed with gzip, zstd or bzip2"

var errNotTar = errors.New("not a tar archive; accepted are " + accepted)

// refused lists formats that no linked library reads: magic number, name, and the command that unpacks it.
var refused = []struct{ magic, name, unpack string }{
	{"\xfd7zXZ\x00", "xz", "xz -d"},
	{"\x04\x22\x4d\x18", "lz4", "lz4 -d"},
	{"\x02\x21\x4c\x18", "lz4", "lz4 -d"}, // the old frame
	{"]\x00\x00", "lzma", "xz -d"},
	{"LZIP", "lzip", "lzip -d"},
	{"\x1f\x9d", "compress", "uncompress"},
	{"\xff\x06\x00\x00sNaPpY", "snappy", "snzip -d"},
	{"PK\x03\x04", "zip", "unzip"},
	{"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"},
	{"Rar!", "rar", "unrar x"},
}

// maxWindow bounds the memory that a zstd archive can make the reader allocate. It is what zstd itself accepts without
// options (--long=27).
const maxWindow = 128 << 20

// plain returns the tar stream inside an archive.
func plain(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	// The next read returns the error again.
	head, _ := b.Peek(512)
	switch f := format(head); f {
	case "gzip":
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("read gzip: %w", err)
		}
		return z, nil
	case "zstd":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("read zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(b)), nil
	case "tar":
		return io.NopCloser(b), nil
	case "":
		if len(head) == 0 {
			return nil, errors.New("the file is empty")
		}
		return nil, errNotTar
	default:
		return nil, errFormat(f)
	}
}

// format returns the name of the format that a file begins with, "" if it is unknown.
func format(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case isZstd(head):
		return "zstd"
	case len(head) >= 10 && bytes.HasPrefix(head, []byte("BZh")) &&
		(string(head[4:10]) == "1AY&SY" || string(head[4:10]) == "\x17rE8P\x90"):
		return "bzip2"
	case isTar(head):
		return "tar"
	}
	for _, r := range refused {
		if bytes.HasPrefix(head, []byte(r.magic)) {
			return r.name
		}
	}
	return ""
}

// errFormat returns an error that says how to convert a file of an unsupported format.
func errFormat(name string) error {
	for _, r := range refused {
		if r.name == name {
			return fmt.Errorf("%s is not supported; accepted are %s: unpack it with `%s`, and compress it with `zstd` to save space", name, accepted, r.unpack)
		}
	}
	return errNotTar
}

// misnamed says how to import a file of the folder that has no archive's name but an archive's content. It is "" for
// other files.
func misnamed(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	if st.IsDir() {
		if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
			return ""
		}
		return "an OCI layout is imported only as an archive; pack it: tar -C " + path + " -cf " + path + ".tar ."
	}
	if !st.Mode().IsRegular() {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // opened for reading
	head := make([]byte, 512)
	n, _ := io.ReadFull(f, head)
	switch is := format(head[:n]); is {
	case "":
		return ""
	case "tar", "gzip", "zstd", "bzip2":
		return "it looks like an archive (" + is +
			"); rename it to end in .tar, .tar.gz, .tar.zst or .tar.bz2 to import it"
	default:
		return errFormat(is).Error()
	}
}

// isZstd reports whether data begins with the magic number of a zstd frame or skippable frame.
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// isTar validates the first header, whose checksum every tar format has.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF) // a long name continues in the next block
}
