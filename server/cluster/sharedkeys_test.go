package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// TestKeysOfSecretsAreThoseOfAllServers: what one server puts into the datastore the others take over, but for those
// who are further, whose file was made by hand, or who are of another cluster.
func TestKeysOfSecretsAreThoseOfAllServers(t *testing.T) {
	config := func(names ...string) []byte {
		var b strings.Builder
		b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- providers:\n")
		for _, n := range names {
			fmt.Fprintf(&b, "  - secretbox:\n      keys:\n      - name: %s\n        secret: c2VjcmV0\n", n)
		}
		b.WriteString("  resources:\n  - secrets\n")
		return []byte(b.String())
	}
	withDatastore(t, func(st datastore.Store) error {
		c, err := datastore.Client(t.Context(), st)
		if err != nil {
			return err
		}
		defer c.Close()
		claim := func(s *Cluster) {
			t.Helper()
			if _, err := s.Authorities.claim(t.Context(), c, false); err != nil {
				t.Fatal(err)
			}
		}
		names := 0
		fresh := func(from *Cluster, file []byte) *Cluster {
			t.Helper()
			d := layout.Dirs{Data: t.TempDir()}
			if from != nil {
				files, err := sharedfiles.Collect(from.cfg.Dirs)
				if err == nil {
					err = sharedfiles.Place(d, files)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			names++
			s := oneOfSeveral(t, fmt.Sprint("s", names), d, st)
			if err := os.WriteFile(d.EncryptionConfig(), file, 0o600); err != nil {
				t.Fatal(err)
			}
			return s
		}
		sync := func(what string, s *Cluster, want []byte) {
			t.Helper()
			if err := s.Keys.encryption.Sync(t.Context(), c); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if got, _ := os.ReadFile(s.cfg.Dirs.EncryptionConfig()); !bytes.Equal(got, want) {
				t.Errorf("%s: its file is\n%s", what, got)
			}
		}
		one := config("key1")
		s1 := fresh(nil, one)
		claim(s1)
		sync("the first one", s1, one)
		s2 := fresh(s1, one)
		claim(s2)
		sync("another one", s2, one)
		announced, further := config("key1", "key2"), config("key2", "key1")
		if err := s1.Keys.ShareEncryption(t.Context(), announced); err != nil {
			t.Error(err)
		}
		sync("who began", s1, announced)
		sync("who is told", s2, announced)
		for what, file := range map[string][]byte{"an older step": one,
			"another second key": bytes.Replace(announced, []byte("c2VjcmV0"), []byte("b3RoZXIh"), 2)} {
			if err := s2.Keys.ShareEncryption(t.Context(), file); !errors.Is(err, encryption.ErrElsewhere) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := s2.Keys.ShareEncryption(t.Context(), announced); err != nil {
			t.Errorf("once more: %v", err)
		}
		if err := os.WriteFile(s2.cfg.Dirs.EncryptionConfig(), further, 0o600); err != nil {
			t.Fatal(err)
		}
		sync("who is further", s2, further)
		sync("who is told of it", s1, further)
		sync("another cluster's", fresh(nil, one), one)
		byHand := []byte("kind: EncryptionConfiguration\n# a plugin\n")
		sync("a file that was made by hand", fresh(s1, byHand), byHand)
		sync("in the end", fresh(s1, announced), further)

		// With another ServiceAccount key the datastore's copy is sealed again, by whoever sees it first.
		watching, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s2.Keys.watch(watching)
		}()
		if err := s1.Authorities.rotation.Rotate(t.Context(), c, []string{pki.ServiceAccount}, ""); err != nil {
			t.Error(err)
		}
		stop()
		<-done
		away := fresh(nil, one)
		sync("who began the rotation", s1, further)
		sync("who followed", s2, further)
		sync("who comes later", fresh(s1, one), further)
		sync("another cluster's, still", away, one)
		raw, err := c.Get(context.Background(), encryption.SharedKey)
		if err != nil || len(raw.Kvs) != 1 || bytes.Contains(raw.Kvs[0].Value, []byte("c2VjcmV0")) {
			t.Errorf("a key stands in the datastore: %v", err)
		}
		return nil
	})
}
