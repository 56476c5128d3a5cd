package snapshot

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	pass "github.com/umiak-io/umiak/internal/passphrase"
)

// Errors that Read and Inspect wrap.
var (
	ErrForeign    = errors.New("not a snapshot of umiak")
	ErrTruncated  = errors.New("the snapshot is truncated")
	ErrAltered    = errors.New("the snapshot is damaged or was altered")
	ErrNewer      = errors.New("the snapshot was written by a newer version")
	ErrPassphrase = errors.New("wrong passphrase")
	ErrEncrypted  = errors.New("the snapshot is encrypted and no passphrase was given")
	// ErrPlain protects a user who has a passphrase: the file itself says whether it is encrypted, so an attacker who
	// can write to the folder could replace it with an unencrypted one, with keys and manifests of their own.
	ErrPlain = errors.New("the snapshot is not encrypted and a passphrase was given")
)

const (
	magic    = "UMIAKSN1"
	endMagic = "UMIAKEND"
	// format is the version of the format in the manifest. A reader refuses a higher one.
	format = 1

	maxManifest = 64 << 10
	maxRecord   = 64 << 20 // a key and its value; etcd's own limit is 1.5 MiB
	maxFile     = 4 << 20  // content of a file
	maxName     = 4096     // name of a file
	window      = 1 << 20  // of the compression, which holds it in memory

	// footerSize is the size of: keys, files, bytes of values, fingerprint, checksum, endMagic.
	footerSize = 8 + 8 + 8 + sha256.Size + sha256.Size + len(endMagic)
)

// Manifest describes a snapshot. It is not encrypted.
type Manifest struct {
	Format   int       `json:"format"`
	Cluster  string    `json:"cluster"` // hash of the server CA's public key, as tokens carry it
	Node     string    `json:"node"`
	Version  string    `json:"version"`
	Time     time.Time `json:"time"`
	Backend  string    `json:"backend"`
	Revision int64     `json:"revision"`
	// Epoch is the number of starts of the datastore. The revisions of the store in memory begin at a multiple of it.
	Epoch     int64  `json:"epoch"`
	Reason    string `json:"reason"` // schedule or on-demand
	Encrypted bool   `json:"encrypted,omitempty"`
}

// Counts are the amounts of content in a snapshot.
type Counts struct {
	Keys  int64 `json:"keys"`
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"` // of keys and values, before compression
}

// File is a file of the folder of a server.
type File struct {
	Name string      `json:"name"` // path below the folder, with slashes
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
	out         *bufio.Writer
	sum         hash.Hash
	inner       io.Writer
	finish      []func() error // closes compression and encryption, in this order
	counts      Counts
	fingerprint *fingerprint
	buf         []byte
}

// NewWriter begins a snapshot on w, encrypted if passphrase is not empty.
func NewWriter(w io.Writer, m Manifest, passphrase string) (*Writer, error) {
	m.Format, m.Encrypted = format, passphrase != ""
	head, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	s := &Writer{out: bufio.NewWriterSize(w, 64<<10), sum: sha256.New(), fingerprint: newFingerprint()}
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
	z, err := zstd.NewWriter(plain, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window),
		zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	s.inner, s.finish = z, append([]func() error{z.Close}, s.finish...)
	// The manifest is repeated inside, where the encryption authenticates it.
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
	s.fingerprint.File(f)
	return s.record(recordFile, append(append(head, '\n'), f.Data...))
}

// Key adds a key. Its Lease is the TTL in seconds.
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
	s.fingerprint.Key(kv)
	return s.record(recordKey, s.buf)
}

// Close completes the snapshot. The output is valid only if Close returns nil.
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
	copy(foot.fingerprint[:], s.fingerprint.Sum())
	b := foot.append(nil)
	s.sum.Write(b)
	if err := writeAll(s.out, b, s.sum.Sum(nil), []byte(endMagic)); err != nil {
		return s.counts, err
	}
	return s.counts, s.out.Flush()
}

// footer is the summary of the content at the end of a file.
type footer struct {
	Counts
	fingerprint [sha256.Size]byte
}

func (f footer) append(b []byte) []byte {
	for _, n := range []int64{f.Keys, f.Files, f.Bytes} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return append(b, f.fingerprint[:]...)
}

func parseFooter(b []byte) (f footer, sum []byte, err error) {
	if len(b) != footerSize || string(b[footerSize-len(endMagic):]) != endMagic {
		return f, nil, ErrTruncated
	}
	f.Keys, f.Files, f.Bytes = int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])),
		int64(binary.BigEndian.Uint64(b[16:]))
	copy(f.fingerprint[:], b[24:])
	return f, b[24+sha256.Size : 24+2*sha256.Size], nil
}
