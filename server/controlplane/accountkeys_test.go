package controlplane

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/umiak-io/umiak/server/pki"
)

type told int

func (n *told) Enqueue() { *n++ }

// TestAccountKeysAreReadAgain: the API server verifies with the keys of the file as it is, and says so to those who
// publish them.
func TestAccountKeysAreReadAgain(t *testing.T) {
	p, err := pki.Ensure(pki.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	a := &APIServer{accountKeys: &accountKeys{file: p.ServiceAccountPublicKey()}}
	if err := a.ReloadAccountKeys(); err != nil || a.accountKeys.now.Load() != nil {
		t.Fatalf("before it serves: %v", err)
	}
	k := a.accountKeys
	if err := k.Load(); err != nil {
		t.Fatal(err)
	}
	var n told
	k.AddListener(&n)
	first := k.GetPublicKeys(t.Context(), "")
	if len(first) != 1 || len(k.GetPublicKeys(t.Context(), first[0].KeyID)) != 1 || k.GetCacheAgeMaxSeconds() == 0 {
		t.Fatalf("%d keys", len(first))
	}
	if err := p.BeginRotation([]string{pki.ServiceAccount}, ""); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadAccountKeys(); err != nil {
		t.Fatal(err)
	}
	both := k.GetPublicKeys(t.Context(), "")
	if len(both) != 2 || len(k.GetPublicKeys(t.Context(), first[0].KeyID)) != 1 || n != 1 {
		t.Errorf("%d keys, told %d times", len(both), n)
	}
	if err := os.WriteFile(k.file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadAccountKeys(); err == nil || len(k.GetPublicKeys(t.Context(), "")) != 2 {
		t.Errorf("a file that cannot be read: %v", err)
	}
	k.file = filepath.Join(t.TempDir(), "none")
	if err := a.ReloadAccountKeys(); err == nil {
		t.Error("no file")
	}
}
