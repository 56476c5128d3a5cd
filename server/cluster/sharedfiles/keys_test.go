package sharedfiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// server makes what a server has from its first start on.
func server(t *testing.T) layout.Dirs {
	t.Helper()
	d := layout.Dirs{Data: t.TempDir()}
	if err := os.MkdirAll(d.Server(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()}); err != nil {
		t.Fatal(err)
	}
	if err := encryption.Ensure(d.EncryptionConfig(), ""); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAnotherServerGetsAll(t *testing.T) {
	from, to := server(t), layout.Dirs{Data: t.TempDir()}
	files, err := Collect(from)
	if err != nil {
		t.Fatal(err)
	}
	if Placed(to) {
		t.Error("keys are where none were put")
	}
	if err := Place(to, files); err != nil {
		t.Fatal(err)
	}
	if !Placed(to) {
		t.Error("all were put there and are not found")
	}
	if _, err := pki.Ensure(pki.Config{Dir: to.ServerPKI()}); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path := filepath.Join(to.Server(), f.Name)
		raw, err := os.ReadFile(path)
		if err != nil || string(raw) != string(f.Data) {
			t.Errorf("%s is another now: %v", f.Name, err)
		}
		if info, err := os.Stat(path); err == nil && strings.HasSuffix(f.Name, ".key") && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name, info.Mode())
		}
	}
}

func TestWhatIsNotPlaced(t *testing.T) {
	files, err := Collect(server(t))
	if err != nil {
		t.Fatal(err)
	}
	for want, list := range map[string][]joinwire.File{
		`"../../etc/passwd" is none of them`: append([]joinwire.File{{Name: "../../etc/passwd", Data: []byte("x")}},
			files...),
		"encryption-config.yaml is missing":   files[1:],
		"pki/server-ca.crt is missing":        files[:len(files)-1],
		"encryption-config.yaml is missing\t": append([]joinwire.File{{Name: files[0].Name}}, files[1:]...),
	} {
		to := layout.Dirs{Data: t.TempDir()}
		if err := Place(to, list); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := os.Stat(to.Server()); err == nil {
			t.Error("something was written")
		}
	}
}

func TestRecord(t *testing.T) {
	files, err := Collect(server(t))
	if err != nil {
		t.Fatal(err)
	}
	r := Record{CA: "x"}
	if err := r.Put(files, "the secret"); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r)
	if err != nil || bytes.Contains(raw, []byte("PRIVATE KEY")) {
		t.Fatalf("%v, %s", err, raw)
	}
	if r, err = Parse(raw); err != nil {
		t.Fatal(err)
	}
	got, err := r.Files("the secret")
	if err != nil || !reflect.DeepEqual(got, files) {
		t.Errorf("%d files of %d, %v", len(got), len(files), err)
	}
	if _, err := r.Files("another"); !errors.Is(err, errWrongToken) {
		t.Errorf("with another secret: %v", err)
	}
	seal := func(files []joinwire.File, secret string) string {
		s, err := SealOf(files, secret)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if seal(files, "the secret") != r.Seal || seal(files, "another") == r.Seal ||
		seal(files[:len(files)-1], "the secret") == r.Seal {
		t.Error("the seal does not say whether something has changed")
	}
}

func FuzzRecord(f *testing.F) {
	r := Record{CA: "x"}
	if err := r.Put([]joinwire.File{{Name: "pki/service-account.key", Data: []byte("k")}}, "s"); err != nil {
		f.Fatal(err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"sealed":"YWdl"}`))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		if r, err := Parse(raw); err == nil {
			_, _ = r.Files("s")
		}
	})
}
