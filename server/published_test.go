package server

import (
	"os"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/keys"
	"github.com/umiak-io/umiak/server/pki"
)

func TestWhenTheRecordIsWritten(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir()}
	p, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		t.Fatal(err)
	}
	if err := encryption.Ensure(d.EncryptionConfig()); err != nil {
		t.Fatal(err)
	}
	s := &Server{dirs: d, pki: p, cfg: Config{ClusterDomain: "cluster.local"}}
	var have keys.Record
	next := func(what string, changed, sealed bool) {
		t.Helper()
		want, c, err := s.nextRecord(have)
		if err != nil || c != changed {
			t.Fatalf("%s: changed %v, %v", what, c, err)
		}
		if c {
			have = want
		}
		if (have.Sealed != nil) != sealed {
			t.Errorf("%s: sealed %v", what, have.Sealed != nil)
		}
	}
	secret := func(text string) {
		t.Helper()
		if err := os.WriteFile(d.ServerToken(), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next("the first claim", true, false)
	secret("one")
	next("the first token", true, true)
	next("nothing has happened", false, true)
	secret("two")
	next("another token", true, true)
	if _, err := have.Files("two"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(d.ServerToken()); err != nil {
		t.Fatal(err)
	}
	next("rotated on another server", false, true)
	s.cfg.ClusterDomain = "else.where"
	if err := p.BeginRotation([]string{string(pki.ServerCA)}, ""); err != nil {
		t.Fatal(err)
	}
	next("another CA, and no token to seal it with", true, false)
	secret("three")
	next("a token again", true, true)
	next("nothing more", false, true)
}
