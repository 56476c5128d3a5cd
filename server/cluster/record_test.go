package cluster

import (
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// TestTwoServersAtOnceOnAnEmptyDatabase: servers with keys of their own that start together with a database that is
// empty end as one that has it and one that is refused, whichever of their steps come first.
func TestTwoServersAtOnceOnAnEmptyDatabase(t *testing.T) {
	server := func(name string, st datastore.Store) *Cluster {
		t.Helper()
		c := oneOfSeveral(t, name, layout.Dirs{Data: t.TempDir()}, st)
		if err := encryption.Ensure(c.cfg.Dirs.EncryptionConfig(), ""); err != nil {
			t.Fatal(err)
		}
		return c
	}
	onEmpty := func(f func(st datastore.Store, first, second *Cluster) error) {
		t.Helper()
		withDatastore(t, func(st datastore.Store) error { return f(st, server("s1", st), server("s2", st)) })
	}
	claim := func(c *Cluster) error {
		client, err := c.cfg.Datastore.Client(t.Context())
		if err != nil {
			return err
		}
		defer client.Close()
		return c.Record.Claim(t.Context(), client)
	}
	onEmpty(func(st datastore.Store, first, second *Cluster) error {
		c, err := datastore.Client(t.Context(), st)
		if err != nil {
			return err
		}
		defer c.Close()
		// The first is between its two steps: its authorities are there, the record is not.
		if _, err := first.Authorities.claim(t.Context(), c, false); err != nil {
			return err
		}
		if err := claim(second); !errors.Is(err, errForeign) {
			t.Errorf("the second one: %v", err)
		}
		if err := claim(first); err != nil {
			t.Errorf("the first one: %v", err)
		}
		if err := claim(second); !errors.Is(err, errForeign) {
			t.Errorf("the second one again: %v", err)
		}
		return nil
	})
	for range 3 { // whatever comes first
		onEmpty(func(_ datastore.Store, first, second *Cluster) error {
			var errs [2]error
			var wg sync.WaitGroup
			for i, s := range []*Cluster{first, second} {
				wg.Go(func() { errs[i] = claim(s) })
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
	c := oneOfSeveral(t, "s1", d, nil)
	r := c.Record
	if err := encryption.Ensure(d.EncryptionConfig(), ""); err != nil {
		t.Fatal(err)
	}
	var have sharedfiles.Record
	next := func(what string, changed, sealed bool) {
		t.Helper()
		want, ch, err := r.next(have)
		if err != nil || ch != changed {
			t.Fatalf("%s: changed %v, %v", what, ch, err)
		}
		if ch {
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
	r.cfg.Settings = []joinwire.Setting{{Key: "cluster-domain", Value: "else.where"}}
	if err := c.cfg.PKI.BeginRotation([]string{string(pki.ServerCA)}, ""); err != nil {
		t.Fatal(err)
	}
	next("another CA, and no token to seal it with", true, false)
	secret("three")
	next("a token again", true, true)
	next("nothing more", false, true)
}
