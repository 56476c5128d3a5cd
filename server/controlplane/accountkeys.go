package controlplane

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// accountKeys are the public keys with which ServiceAccount tokens are verified. Upstream reads the file once; servers
// that replace the key one after the other have to learn the next one while they run.
type accountKeys struct {
	file string
	now  atomic.Pointer[serviceaccount.PublicKeysGetter]

	mu        sync.Mutex
	listeners []serviceaccount.Listener
}

var _ serviceaccount.PublicKeysGetter = (*accountKeys)(nil)

// Load reads the file again.
func (k *accountKeys) Load() error {
	keys, err := keyutil.PublicKeysFromFile(k.file)
	if err != nil {
		return fmt.Errorf("read the public ServiceAccount keys: %w", err)
	}
	static, err := serviceaccount.StaticPublicKeysGetter(keys)
	if err != nil {
		return fmt.Errorf("read the public ServiceAccount keys %s: %w", k.file, err)
	}
	k.now.Store(&static)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.listeners {
		l.Enqueue()
	}
	return nil
}

// AddListener registers l, which is notified when the keys change.
func (k *accountKeys) AddListener(l serviceaccount.Listener) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners = append(k.listeners, l)
}

// GetCacheAgeMaxSeconds returns upstream's value for keys from a file.
func (k *accountKeys) GetCacheAgeMaxSeconds() int { return (*k.now.Load()).GetCacheAgeMaxSeconds() }

// GetPublicKeys returns the keys with an id, or all.
func (k *accountKeys) GetPublicKeys(ctx context.Context, id string) []serviceaccount.PublicKey {
	return (*k.now.Load()).GetPublicKeys(ctx, id)
}

// useAccountKeys has tokens verified with keys that can change, and issued so that they outlive a wrong clock. The
// user cannot choose others, see ownedByAPIServer.
func (a *APIServer) useAccountKeys(completed options.CompletedOptions) error {
	if err := a.accountKeys.Load(); err != nil {
		return err
	}
	accounts := completed.Authentication.ServiceAccounts
	accounts.KeyFiles, accounts.ExternalPublicKeysGetter = nil, a.accountKeys
	if completed.ServiceAccountIssuer != nil {
		completed.ServiceAccountIssuer = undoubted{TokenGenerator: completed.ServiceAccountIssuer, now: time.Now}
	}
	return nil
}

// ReloadAccountKeys reads the public keys of ServiceAccount tokens again. Tokens of keys that are gone are refused from
// then on; a server that has not begun to serve reads them when it does.
func (a *APIServer) ReloadAccountKeys() error {
	if a.accountKeys.now.Load() == nil {
		return nil
	}
	return a.accountKeys.Load()
}
