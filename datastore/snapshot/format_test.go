package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// sample returns the content of the tests' snapshots.
func sample(n int) (files []File, kvs []*mvccpb.KeyValue) {
	files = []File{{Name: "pki/server-ca.key", Mode: 0o600, Data: []byte("key\nof\x00many lines")},
		{Name: "token", Mode: 0o600}}
	for i := range n {
		kvs = append(kvs, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "/registry/pods/%06d", i),
			Value: bytes.Repeat([]byte{byte(i), 'v'}, i%700), CreateRevision: int64(i + 2), ModRevision: int64(2*i + 2),
			Version: 3, Lease: int64(i % 2 * 3600)})
	}
	return files, kvs
}

func write(t testing.TB, n int, passphrase string) []byte {
	t.Helper()
	files, kvs := sample(n)
	var b bytes.Buffer
	w, err := NewWriter(&b, Manifest{Cluster: "c", Node: "m1", Version: "v1", Time: time.Unix(1e9, 0).UTC(),
		Backend: "sqlite", Revision: 99, Epoch: 3}, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := w.File(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, kv := range kvs {
		if err := w.Key(kv); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := w.Close(); err != nil || c.Keys != int64(n) || c.Files != 2 {
		t.Fatalf("%v, %v", c, err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for _, pass := range []string{"", "correct horse"} {
		for _, n := range []int{0, 1, 3000} {
			raw := write(t, n, pass)
			wantFiles, wantKeys := sample(n)
			var files []File
			var kvs []*mvccpb.KeyValue
			info, err := read(bytes.NewReader(raw), int64(len(raw)), pass, Visitor{
				File: func(f File) error { files = append(files, f); return nil },
				Key:  func(kv *mvccpb.KeyValue) error { kvs = append(kvs, kv); return nil },
			})
			if err != nil || info.Encrypted != (pass != "") || info.Revision != 99 || info.Epoch != 3 {
				t.Fatalf("%+v, %v", info, err)
			}
			if len(files) != 2 || files[0].Name != wantFiles[0].Name || !bytes.Equal(files[0].Data,
				wantFiles[0].Data) || files[0].Mode != 0o600 {
				t.Fatalf("files %v", files)
			}
			if len(kvs) != n {
				t.Fatalf("%d keys", len(kvs))
			}
			for i := range kvs {
				if !proto.Equal(kvs[i], wantKeys[i]) {
					t.Fatalf("%v became %v", wantKeys[i], kvs[i])
				}
			}
			if n == 3000 && len(raw) > 400_000 {
				t.Errorf("%d bytes: not compressed?", len(raw))
			}
		}
	}
}

func TestSecretsAreNotLegibleWithAPassphrase(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, Manifest{Cluster: "visible"}, "p")
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 500) // not compressible
	for i := range secret {
		secret[i] = byte(rand.Int())
	}
	_ = w.File(File{Name: "pki/x.key", Data: secret})
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), secret[:20]) || bytes.Contains(b.Bytes(), []byte("pki/x.key")) ||
		!bytes.Contains(b.Bytes(), []byte("visible")) {
		t.Fatal("the secret is legible or the manifest is not")
	}
}

func TestEveryTruncationAndEveryAlteredByteIsRefused(t *testing.T) {
	for _, pass := range []string{"", "p"} {
		raw := write(t, 3, pass)
		check := func(what string, b []byte, want ...error) {
			t.Helper()
			_, err := read(bytes.NewReader(b), int64(len(b)), pass, Visitor{})
			for _, w := range want {
				if errors.Is(err, w) {
					return
				}
			}
			t.Fatalf("%s: %v", what, err)
		}
		for n := range len(raw) {
			if n == 0 {
				check("empty", nil, ErrForeign)
				continue
			}
			check(fmt.Sprint("cut to ", n), raw[:n], ErrTruncated, ErrAltered)
		}
		for i := range raw {
			b := bytes.Clone(raw)
			b[i] ^= 1 << (i % 8)
			check(fmt.Sprint("altered at ", i), b, ErrAltered, ErrForeign, ErrTruncated, ErrNewer)
		}
		check("longer", append(bytes.Clone(raw), 0), ErrTruncated)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	sealed := put("sealed", write(t, 3, "right"))
	for _, c := range []struct {
		path, pass string
		want       error
	}{
		{sealed, "wrong", ErrPassphrase}, {sealed, "", ErrEncrypted}, {put("plain", write(t, 3, "")), "right",
			ErrPlain},
		{put("other", []byte("SQLite format 3\x00 and so on and on")), "", ErrForeign},
		{put("newer", bytes.Replace(write(t, 1, ""), []byte(`"format":1`), []byte(`"format":7`), 1)), "", ErrNewer},
		{filepath.Join(dir, "none"), "", os.ErrNotExist},
	} {
		_, err := Read(c.path, c.pass, Visitor{})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
	if _, err := Read(dir, "", Visitor{}); err == nil {
		t.Error("read a folder")
	}
	stop := errors.New("the visitor's own")
	if _, err := Read(sealed, "right", Visitor{Key: func(*mvccpb.KeyValue) error { return stop }}); !errors.Is(err,
		stop) || errors.Is(err, ErrAltered) {
		t.Errorf("a visitor's error: %v", err)
	}
	if i, err := Inspect(sealed); err != nil || i.Keys != 3 || !i.Encrypted || i.Node != "m1" {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestNamesThatLeaveTheFolderAreRefused(t *testing.T) {
	for _, name := range []string{"../x", "/etc/passwd", "a/../../b", "", ".", "a//b"} {
		var b bytes.Buffer
		w, _ := NewWriter(&b, Manifest{}, "")
		if err := w.File(File{Name: name}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := read(bytes.NewReader(b.Bytes()), int64(b.Len()), "", Visitor{}); !errors.Is(err, ErrAltered) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(write(f, 3, ""))
	f.Add(write(f, 0, ""))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = read(bytes.NewReader(b), int64(len(b)), "", Visitor{})
	})
}

// FuzzRecords fuzzes the records, past checksum and compression.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("M\x02{}K\x05abcdeE\x02{}"), []byte("{}"))
	f.Fuzz(func(t *testing.T, b, head []byte) {
		_ = readRecords(bufioReader(b), frame{head: head}, Visitor{})
	})
}

func bufioReader(b []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(b)) }
