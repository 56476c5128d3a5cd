package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	pass "github.com/umiak-io/umiak/internal/passphrase"
)

// What can be wrong with a file; errors of Read and Inspect wrap one of these.
var (
	ErrForeign    = errors.New("not a snapshot of umiak")
	ErrTruncated  = errors.New("the snapshot is truncated")
	ErrAltered    = errors.New("the snapshot is damaged or was altered")
	ErrNewer      = errors.New("the snapshot was written by a newer version")
	ErrPassphrase = errors.New("wrong passphrase")
	ErrEncrypted  = errors.New("the snapshot is encrypted and no passphrase was given")
	// ErrPlain: that a file is encrypted stands in the file itself. Who can write where snapshots lie could put another there, with keys
	// and manifests of their own, so whoever has a passphrase gets no other.
	ErrPlain = errors.New("the snapshot is not encrypted and a passphrase was given")
)

const (
	magic    = "UMIAKSN1"
	endMagic = "UMIAKEND"
	// format is what the manifest says; a reader refuses a higher one.
	format = 1

	maxManifest = 64 << 10
	maxRecord   = 64 << 20 // a key and its value; etcd's own limit is 1.5 MiB
	maxFile     = 4 << 20
	maxName     = 4096
	window      = 1 << 20 // of the compression: what it holds in memory

	// The footer: keys, files, bytes of values, fingerprint, checksum, end.
	footerSize = 8 + 8 + 8 + sha256.Size + sha256.Size + len(endMagic)
)

// Manifest says what a snapshot is of. It is not secret.
type Manifest struct {
	Format   int       `json:"format"`
	Cluster  string    `json:"cluster"` // hash of the server CA's public key, as tokens carry it
	Node     string    `json:"node"`
	Version  string    `json:"version"`
	Time     time.Time `json:"time"`
	Backend  string    `json:"backend"`
	Revision int64     `json:"revision"`
	// Epoch is how many starts a datastore in memory has had: its revisions count from there.
	Epoch     int64  `json:"epoch"`
	Reason    string `json:"reason"` // schedule or on-demand
	Encrypted bool   `json:"encrypted,omitempty"`
}

// Counts are what a snapshot holds.
type Counts struct {
	Keys  int64 `json:"keys"`
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"` // of keys and values, not compressed
}

// File is a file of the server's folder.
type File struct {
	Name string      `json:"name"` // relative, with slashes
	Mode fs.FileMode `json:"mode"`
	Data []byte      `json:"-"`
}

// Kinds of records.
const (
	recordManifest = 'M'
	recordFile     = 'F'
	recordKey      = 'K'
	recordEnd      = 'E'
)

// Writer writes a snapshot.
type Writer struct {
	out    *bufio.Writer
	sum    hash.Hash
	inner  io.Writer
	finish []func() error // closes encoder and encryption, in this order
	counts Counts
	print  *Fingerprint
	buf    []byte
}

// NewWriter begins a snapshot on w, encrypted if passphrase is not empty.
func NewWriter(w io.Writer, m Manifest, passphrase string) (*Writer, error) {
	m.Format, m.Encrypted = format, passphrase != ""
	head, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	s := &Writer{out: bufio.NewWriterSize(w, 64<<10), sum: sha256.New(), print: NewFingerprint()}
	plain := io.MultiWriter(s.out, s.sum)
	if err := writeAll(plain, []byte(magic), binary.BigEndian.AppendUint32(nil, uint32(len(head))), head); err != nil {
		return nil, err
	}
	if passphrase != "" {
		enc, err := pass.Encrypt(plain, passphrase, pass.Suitable())
		if err != nil {
			return nil, err
		}
		plain, s.finish = enc, append(s.finish, enc.Close)
	}
	z, err := zstd.NewWriter(plain, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	s.inner, s.finish = z, append([]func() error{z.Close}, s.finish...)
	// Again inside, where the encryption vouches for it.
	return s, s.record(recordManifest, head)
}

func writeAll(w io.Writer, parts ...[]byte) error {
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Writer) record(kind byte, data []byte) error {
	head := binary.AppendUvarint([]byte{kind}, uint64(len(data)))
	return writeAll(s.inner, head, data)
}

// File adds a file.
func (s *Writer) File(f File) error {
	head, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s.counts.Files++
	s.print.File(f)
	return s.record(recordFile, append(append(head, '\n'), f.Data...))
}

// Key adds a key. Its lease is a number of seconds.
func (s *Writer) Key(kv *mvccpb.KeyValue) error {
	var err error
	if s.buf, err = (proto.MarshalOptions{}).MarshalAppend(s.buf[:0], kv); err != nil {
		return fmt.Errorf("write %q: %w", kv.Key, err)
	}
	if len(s.buf) > maxRecord {
		return fmt.Errorf("write %q: %d bytes are more than a snapshot can hold", kv.Key, len(s.buf))
	}
	s.counts.Keys++
	s.counts.Bytes += int64(len(kv.Key) + len(kv.Value))
	s.print.Key(kv)
	return s.record(recordKey, s.buf)
}

// Close ends the snapshot; what was written is one only after it has returned nil.
func (s *Writer) Close() (Counts, error) {
	end, err := json.Marshal(s.counts)
	if err != nil {
		return s.counts, err
	}
	if err := s.record(recordEnd, end); err != nil {
		return s.counts, err
	}
	for _, f := range s.finish {
		if err := f(); err != nil {
			return s.counts, err
		}
	}
	foot := footer{Counts: s.counts}
	copy(foot.print[:], s.print.Sum())
	b := foot.append(nil)
	s.sum.Write(b)
	if err := writeAll(s.out, b, s.sum.Sum(nil), []byte(endMagic)); err != nil {
		return s.counts, err
	}
	return s.counts, s.out.Flush()
}

// footer is what can be told of the content without reading it.
type footer struct {
	Counts
	print [sha256.Size]byte
}

func (f footer) append(b []byte) []byte {
	for _, n := range []int64{f.Keys, f.Files, f.Bytes} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return append(b, f.print[:]...)
}

func parseFooter(b []byte) (f footer, sum []byte, err error) {
	if len(b) != footerSize || string(b[footerSize-len(endMagic):]) != endMagic {
		return f, nil, ErrTruncated
	}
	f.Keys, f.Files, f.Bytes = int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b[16:]))
	copy(f.print[:], b[24:])
	return f, b[24+sha256.Size : 24+2*sha256.Size], nil
}

// frame is what surrounds the records of a file.
type frame struct {
	Manifest
	footer
	head       []byte // the manifest as it stands in the file
	start, end int64  // of the records
}

// readFrame reads the outside of a snapshot of the given size.
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

// verify compares the checksum of the whole file.
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

// Visitor gets what a snapshot holds: files first, then keys in their order. Slices are not kept by Read.
type Visitor struct {
	File func(File) error
	Key  func(*mvccpb.KeyValue) error
}

// Info is what is known of a snapshot from its outside.
type Info struct {
	Manifest
	Counts
	Fingerprint []byte `json:"-"`
	Size        int64  `json:"size"`
}

// Inspect reads manifest and counts. It does not verify the content.
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
	return Info{Manifest: f.Manifest, Counts: f.Counts, Fingerprint: f.print[:], Size: size}, nil
}

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

// Read verifies the file as a whole and then visits what it holds. When it returns an error, what was
// visited must not be used.
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
	info := Info{Manifest: f.Manifest, Counts: f.Counts, Fingerprint: f.print[:], Size: size}
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
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
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

// visitError keeps errors of visitors apart from those of the file.
type visitError struct{ error }

func (e visitError) Unwrap() error { return e.error }

func readRecords(in *bufio.Reader, f frame, v Visitor) error {
	err := scan(in, f, v)
	var own visitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own.error
	case errors.Is(err, ErrAltered):
		return err
	}
	return fmt.Errorf("%w: %w", ErrAltered, err)
}

func scan(in *bufio.Reader, f frame, v Visitor) error {
	var got Counts
	print := NewFingerprint()
	for first := true; ; first = false {
		kind, data, err := readRecord(in)
		if err != nil {
			return err
		}
		if first != (kind == recordManifest) {
			return errors.New("records stand in a wrong order")
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
			print.File(file)
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
			if len(kv.Key) == 0 || kv.ModRevision <= 0 || kv.CreateRevision <= 0 || kv.CreateRevision > kv.ModRevision || kv.Version <= 0 {
				return fmt.Errorf("the key %q is impossible", kv.Key)
			}
			got.Keys++
			got.Bytes += int64(len(kv.Key) + len(kv.Value))
			print.Key(kv)
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
			if want != got || want != f.Counts || !bytes.Equal(print.Sum(), f.print[:]) {
				return fmt.Errorf("it holds %d keys and %d files, and says that it has %d and %d", got.Keys, got.Files, want.Keys, want.Files)
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				return errors.New("something follows its end")
			}
			return nil
		default:
			return fmt.Errorf("a record of kind %q", kind)
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
		return 0, nil, fmt.Errorf("a record of %d bytes", n)
	}
	// Grown as it is read: a length alone must not take memory.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, in, int64(n)); err != nil {
		return 0, nil, noEOF(err)
	}
	return kind, b.Bytes(), nil
}

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
