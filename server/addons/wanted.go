package addons

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// wanted is what of a manifest is to stay.
type wanted struct {
	keys map[manifest.Key]bool
	// anywhere has the keys of objects of which it is not known whether their kind has namespaces, without a namespace.
	anywhere map[manifest.Key]bool
	// uids are the live objects that were applied, by whichever of an API's groups: what has one of these is never pruned.
	uids map[types.UID]bool
}

func newWanted() *wanted {
	return &wanted{keys: map[manifest.Key]bool{}, anywhere: map[manifest.Key]bool{}, uids: map[types.UID]bool{}}
}

// unresolved keeps an object whose place in the API is not known now.
func (w *wanted) unresolved(o *unstructured.Unstructured) {
	w.keys[fileKey(o)] = true
	w.anywhere[manifest.KeyOf(o.GroupVersionKind().GroupKind(), "", o.GetName())] = true
}

// has says whether the entry is wanted. One of a kind without namespaces has none, whatever the file says.
func (w *wanted) has(e entry) bool {
	return w.keys[e.key()] || e.Namespace == "" && w.anywhere[e.key()]
}

// fileKey is the object's key by what it says itself.
func fileKey(o *unstructured.Unstructured) manifest.Key {
	return manifest.KeyOf(o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
}

// keyOf is the object's key: a kind that is known to have no namespaces has none in its key. c.mu is held.
func (c *Controller) keyOf(o *unstructured.Unstructured) manifest.Key {
	if gk := o.GroupVersionKind().GroupKind(); c.scopes[gk] == clusterWide {
		return manifest.KeyOf(gk, "", o.GetName())
	}
	return fileKey(o)
}

// owns says whether an object of a file is its manifest's.
func (c *Controller) owns(id string, o *unstructured.Unstructured) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner[c.keyOf(o)] == id
}

// scope says whether a kind has namespaces. Only the API server knows, and it may not answer yet.
type scope int

const (
	unknownScope scope = iota
	clusterWide
	namespaced
)

// learn notes whether a kind has namespaces. Who owns its objects is decided anew when that was not known.
func (c *Controller) learn(gk schema.GroupKind, inNamespaces bool) {
	now := clusterWide
	if inNamespaces {
		now = namespaced
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.scopes[gk]
	if was == now {
		return
	}
	if c.scopes[gk] = now; was == clusterWide || now == clusterWide {
		c.claim()
	}
}

// recall learns from records which kinds have no namespaces, for as long as the API server has not said so. c.mu is held.
func (c *Controller) recall() {
	for _, it := range c.items {
		if it.rec == nil {
			continue
		}
		for _, e := range it.rec.Items {
			if gk := e.gvk().GroupKind(); e.Namespace == "" && c.scopes[gk] == unknownScope {
				c.scopes[gk] = clusterWide
			}
		}
	}
}
