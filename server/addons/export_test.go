package addons

import (
	"k8s.io/client-go/metadata"
)

// Kinds is kinds, for tests.
type Kinds struct{ *kinds }

// NewKinds returns what wakes those that wait for a kind.
func NewKinds(c metadata.Interface, wake func(string)) Kinds { return Kinds{newKinds(c, wake)} }

// Await makes a manifest wait for API groups.
func (k Kinds) Await(id string, groups ...string) { k.await(id, groups) }

// Watching says whether anything is watched.
func (k Kinds) Watching() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stop != nil
}

// Close ends it.
func (k Kinds) Close() { k.close() }
