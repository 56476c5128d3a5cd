package cluster

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
)

// TestFilesOfOneServerOfSeveral: who shares keys through the datastore does not rotate them on files alone, but by
// force, and then they count at the next start.
func TestFilesOfOneServerOfSeveral(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir()}
	if _, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()}); err != nil {
		t.Fatal(err)
	}
	a := &Authorities{cfg: Config{Dirs: d}}
	ca := func() string {
		t.Helper()
		raw, err := os.ReadFile(d.ServerPKI() + "/client-ca.crt")
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	before := ca()
	if err := os.WriteFile(markFile(d), []byte(markShared), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateFiles(d, RotateRequest{}); !errors.Is(err, errInDatastore) || ca() != before {
		t.Errorf("with others: %v", err)
	}
	if out, err := RotateFiles(d, RotateRequest{Status: true}); err != nil || len(out.UnderWay) > 0 {
		t.Errorf("only asked: %+v, %v", out, err)
	}
	for _, mark := range []string{markShared, ""} {
		if err := os.Remove(markFile(d)); err != nil {
			t.Fatal(err)
		}
		if mark == "" {
			if err := os.MkdirAll(d.DB()+"/etcd/member", 0o700); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(markFile(d), []byte(mark), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := RotateFiles(d, RotateRequest{Names: []string{"no-such-ca"}, Force: true})
		raw, _ := os.ReadFile(markFile(d))
		if !errors.Is(err, pki.ErrUnknownName) || string(raw) != mark {
			t.Errorf("by force and in vain: %v, the mark is %q, want %q", err, raw, mark)
		}
	}
	if err := errors.Join(os.RemoveAll(d.DB()), os.WriteFile(markFile(d), []byte(markShared), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := RotateFiles(d, RotateRequest{Names: []string{"client-ca"}, Force: true}); err != nil ||
		len(out.UnderWay) != 1 || !strings.Contains(ca(), before) || ca() == before {
		t.Errorf("by force: %+v, %v", out, err)
	}
	if !a.filesInForce() {
		t.Error("what was changed by force does not count")
	}
	if err := os.Remove(markFile(d)); err != nil {
		t.Fatal(err)
	}
	if out, err := RotateFiles(d, RotateRequest{Names: []string{"etcd-ca"}}); err != nil || len(out.UnderWay) != 2 {
		t.Errorf("one server: %+v, %v", out, err)
	}
}
