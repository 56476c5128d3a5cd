package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	pass "github.com/umiak-io/umiak/internal/passphrase"
)

// frame is the part of a file outside the records.
type frame struct {
	Manifest
	footer
	head       []byte // manifest as in the file
	start, end int64  // offsets of the records
}

// readFrame reads the frame of a snapshot of the given size.
func readFrame(r io.ReaderAt, size int64) (frame, error) {
	var f frame
	b := make([]byte, len(magic)+4)
	if n, err := r.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return f, err
	} else if n < len(b) {
		if n > 0 && bytes.HasPrefix([]byte(magic), b[:min(n, len(magic))]) {
			return f, ErrTruncated
		}
		return f, ErrForeign
	}
	if string(b[:len(magic)]) != magic {
		return f, ErrForeign
	}
	n := int64(binary.BigEndian.Uint32(b[len(magic):]))
	if n > maxManifest {
		return f, fmt.Errorf("%w: its manifest has %d bytes", ErrAltered, n)
	}
	f.start = int64(len(b)) + n
	f.end = size - int64(footerSize)
	if f.end < f.start {
		return f, ErrTruncated
	}
	f.head = make([]byte, n)
	if _, err := r.ReadAt(f.head, int64(len(b))); err != nil {
		return f, err
	}
	if err := json.Unmarshal(f.head, &f.Manifest); err != nil {
		return f, fmt.Errorf("%w: manifest: %w", ErrAltered, err)
	}
	if f.Format > format {
		return f, fmt.Errorf("%w: format %d, this one knows %d", ErrNewer, f.Format, format)
	}
	foot := make([]byte, footerSize)
	if _, err := r.ReadAt(foot, f.end); err != nil {
		return f, err
	}
	var err error
	f.footer, _, err = parseFooter(foot)
	return f, err
}

// verify checks the checksum of the whole file.
func verify(r io.ReaderAt, size int64) error {
	covered := size - int64(sha256.Size+len(endMagic))
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, covered)); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := r.ReadAt(want, covered); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return fmt.Errorf("%w: its checksum does not match", ErrAltered)
	}
	return nil
}

// Visitor receives the content of a snapshot: first the files, then the keys in key order. A nil function skips its
// kind. The visitor may keep the slices.
type Visitor struct {
	File func(File) error
	Key  func(*mvccpb.KeyValue) error
}

// Info is the content of the frame of a snapshot.
type Info struct {
	Manifest
	Counts
	Fingerprint []byte `json:"-"`
	Size        int64  `json:"size"`
}

// Inspect reads manifest and counts. It verifies neither checksum nor content.
func Inspect(path string) (Info, error) {
	r, size, err := open(path)
	if err != nil {
		return Info{}, err
	}
	defer r.Close() //nolint:errcheck // only read
	f, err := readFrame(r, size)
	if err != nil {
		return Info{}, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return Info{Manifest: f.Manifest, Counts: f.Counts, Fingerprint: f.fingerprint[:], Size: size}, nil
}

// open opens a regular file and returns it with its size.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read snapshot: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return f, st.Size(), nil
}

// Read verifies the checksum of the whole file and then visits its content. If it returns an error, the visited content
// must not be used.
func Read(path, passphrase string, v Visitor) (Info, error) {
	r, size, err := open(path)
	if err != nil {
		return Info{}, err
	}
	defer r.Close() //nolint:errcheck // only read
	info, err := read(r, size, passphrase, v)
	if err != nil {
		return info, fmt.Errorf("read snapshot %s: %w", path, err)
	}
	return info, nil
}

func read(r io.ReaderAt, size int64, passphrase string, v Visitor) (Info, error) {
	f, err := readFrame(r, size)
	if err != nil {
		return Info{}, err
	}
	info := Info{Manifest: f.Manifest, Counts: f.Counts, Fingerprint: f.fingerprint[:], Size: size}
	if err := verify(r, size); err != nil {
		return info, err
	}
	var in io.Reader = io.NewSectionReader(r, f.start, f.end-f.start)
	switch {
	case f.Encrypted:
		if in, err = decrypt(in, passphrase); err != nil {
			return info, err
		}
	case passphrase != "":
		return info, ErrPlain
	}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrAltered, err)
	}
	defer z.Close()
	return info, readRecords(bufio.NewReaderSize(z, 64<<10), f, v)
}

func decrypt(in io.Reader, passphrase string) (io.Reader, error) {
	if passphrase == "" {
		return nil, ErrEncrypted
	}
	out, err := pass.Decrypt(in, passphrase)
	switch {
	case errors.Is(err, pass.ErrWrong):
		return nil, ErrPassphrase
	case errors.Is(err, pass.ErrMemory):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrAltered, err)
	}
	return out, nil
}

// visitError marks an error of a visitor, as opposed to one of the file.
type visitError struct{ error }

func (e visitError) Unwrap() error { return e.error }

// readRecords visits the records. Its errors wrap ErrAltered, but for those of the visitor.
func readRecords(in *bufio.Reader, f frame, v Visitor) error {
	err := scan(in, f, v)
	var visit visitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &visit):
		return visit.error
	case errors.Is(err, ErrAltered):
		return err
	}
	return fmt.Errorf("%w: %w", ErrAltered, err)
}

// scan reads all records and compares their numbers and fingerprint with the last one and the footer.
func scan(in *bufio.Reader, f frame, v Visitor) error {
	var got Counts
	sum := newFingerprint()
	for first := true; ; first = false {
		kind, data, err := readRecord(in)
		if err != nil {
			return err
		}
		if first != (kind == recordManifest) {
			return errors.New("the records are in the wrong order")
		}
		switch kind {
		case recordManifest:
			if !bytes.Equal(data, f.head) {
				return errors.New("the manifest inside differs from the one outside")
			}
		case recordFile:
			file, err := parseFile(data)
			if err != nil {
				return err
			}
			got.Files++
			sum.File(file)
			if v.File != nil {
				if err := v.File(file); err != nil {
					return visitError{err}
				}
			}
		case recordKey:
			kv := &mvccpb.KeyValue{}
			if err := proto.Unmarshal(data, kv); err != nil {
				return err
			}
			if len(kv.Key) == 0 || kv.ModRevision <= 0 || kv.CreateRevision <= 0 ||
				kv.CreateRevision > kv.ModRevision || kv.Version <= 0 {
				return fmt.Errorf("the key %q has impossible revisions", kv.Key)
			}
			got.Keys++
			got.Bytes += int64(len(kv.Key) + len(kv.Value))
			sum.Key(kv)
			if v.Key != nil {
				if err := v.Key(kv); err != nil {
					return visitError{err}
				}
			}
		case recordEnd:
			var want Counts
			if err := json.Unmarshal(data, &want); err != nil {
				return err
			}
			if want != got || want != f.Counts || !bytes.Equal(sum.Sum(), f.fingerprint[:]) {
				return fmt.Errorf("it has %d keys and %d files, and its last record counts %d and %d", got.Keys,
					got.Files,
					want.Keys, want.Files)
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				return errors.New("data follows the last record")
			}
			return nil
		default:
			return fmt.Errorf("unknown kind of record %q", kind)
		}
	}
}

func readRecord(in *bufio.Reader) (kind byte, data []byte, err error) {
	if kind, err = in.ReadByte(); err != nil {
		return 0, nil, noEOF(err)
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	if n > maxRecord {
		return 0, nil, fmt.Errorf("a record has %d bytes, more than %d", n, maxRecord)
	}
	// The buffer grows as data arrives, so that a false length alone allocates nothing.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, in, int64(n)); err != nil {
		return 0, nil, noEOF(err)
	}
	return kind, b.Bytes(), nil
}

// noEOF turns io.EOF into io.ErrUnexpectedEOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func parseFile(data []byte) (File, error) {
	head, content, ok := bytes.Cut(data, []byte{'\n'})
	var f File
	if !ok || len(head) > 2*maxName {
		return f, errors.New("a file without a name")
	}
	if err := json.Unmarshal(head, &f); err != nil {
		return f, err
	}
	if !fs.ValidPath(f.Name) || f.Name == "." || len(f.Name) > maxName || len(content) > maxFile {
		return f, fmt.Errorf("a file with the name %q and %d bytes", f.Name, len(content))
	}
	f.Mode, f.Data = f.Mode.Perm()&0o755, content
	return f, nil
}
