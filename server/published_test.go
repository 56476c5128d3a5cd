package server

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// TestTwoServersAtOnceOnAnEmptyDatabase: servers with keys of their own that start together with a database that is empty
// end as one that has it and one that is refused, whichever of their steps come first.
func TestTwoServersAtOnceOnAnEmptyDatabase(t *testing.T) {
	server := func(name string) *Server {
		t.Helper()
		d := layout.Dirs{Data: t.TempDir()}
		p, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()})
		if err == nil {
			err = encryption.Ensure(d.EncryptionConfig())
		}
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.DiscardHandler)
		return &Server{dirs: d, pki: p, log: log, cfg: Config{ClusterDomain: "cluster.local", DatastoreEndpoint: "postgres://"},
			rotation: rotation.New(rotation.Config{Name: name, PKI: p, TakenOver: func(*rotation.Record) {}, Log: log})}
	}
	onEmpty := func(f func(st datastore.Store, first, second *Server) error) {
		t.Helper()
		dir := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
		dc := datastore.Config{Dir: dir.DB(), Socket: dir.DatastoreSocket(), VolatileSocket: dir.VolatileSocket(), Log: slog.New(slog.DiscardHandler)}
		if err := withStore(t.Context(), dc, func(st datastore.Store) error { return f(st, server("s1"), server("s2")) }); err != nil {
			t.Fatal(err)
		}
	}
	onEmpty(func(st datastore.Store, first, second *Server) error {
		c, err := datastore.Client(t.Context(), st)
		if err != nil {
			return err
		}
		defer c.Close()
		// The first is between its two steps: its authorities are there, the record is not.
		if _, err := first.claimAuthorities(t.Context(), c, false); err != nil {
			return err
		}
		if err := second.claim(t.Context(), st, false); !errors.Is(err, errForeign) {
			t.Errorf("the second one: %v", err)
		}
		if err := first.claim(t.Context(), st, false); err != nil {
			t.Errorf("the first one: %v", err)
		}
		if err := second.claim(t.Context(), st, false); !errors.Is(err, errForeign) {
			t.Errorf("the second one again: %v", err)
		}
		return nil
	})
	for range 3 { // whatever comes first
		onEmpty(func(st datastore.Store, first, second *Server) error {
			var errs [2]error
			var wg sync.WaitGroup
			for i, s := range []*Server{first, second} {
				wg.Go(func() { errs[i] = s.claim(t.Context(), st, false) })
			}
			wg.Wait()
			if errs[0] != nil && errs[1] != nil || !errors.Is(errors.Join(errs[:]...), errForeign) {
				t.Errorf("at once: %v; %v", errs[0], errs[1])
			}
			return nil
		})
	}
}

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
	var have sharedfiles.Record
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
	next("revoked: whoever has the token opens nothing", true, false)
	next("and nothing more", false, false)
	s.cfg.ClusterDomain = "else.where"
	if err := p.BeginRotation([]string{string(pki.ServerCA)}, ""); err != nil {
		t.Fatal(err)
	}
	next("another CA, and no token to seal it with", true, false)
	secret("three")
	next("a token again", true, true)
	next("nothing more", false, true)
}
