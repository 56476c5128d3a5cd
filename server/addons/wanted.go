package addons

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// wanted holds the objects of a manifest that must stay.
type wanted struct {
	keys map[manifest.Key]bool
	// anywhere holds the keys, without a namespace, of objects whose kind may or may not have namespaces.
	anywhere map[manifest.Key]bool
	// uids are the UIDs of the applied objects, whichever of an API's groups was used: these are never pruned.
	uids map[types.UID]bool
}

func newWanted() *wanted {
	return &wanted{keys: map[manifest.Key]bool{}, anywhere: map[manifest.Key]bool{}, uids: map[types.UID]bool{}}
}

// unresolved adds an object whose kind is currently unknown.
func (w *wanted) unresolved(o *unstructured.Unstructured) {
	w.keys[fileKey(o)] = true
	w.anywhere[manifest.KeyOf(o.GroupVersionKind().GroupKind(), "", o.GetName())] = true
}

// has reports whether the entry must stay. An entry of a cluster-scoped kind has no namespace, whatever the file says.
func (w *wanted) has(e entry) bool {
	return w.keys[e.key()] || e.Namespace == "" && w.anywhere[e.key()]
}

// fileKey is the object's key as written in the file.
func fileKey(o *unstructured.Unstructured) manifest.Key {
	return manifest.KeyOf(o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
}

// keyOf is the object's key, without a namespace if its kind is known to be cluster-scoped. c.mu must be held.
func (c *Controller) keyOf(o *unstructured.Unstructured) manifest.Key {
	if gk := o.GroupVersionKind().GroupKind(); c.scopes[gk] == clusterWide {
		return manifest.KeyOf(gk, "", o.GetName())
	}
	return fileKey(o)
}

// owns reports whether an object of a file belongs to its manifest.
func (c *Controller) owns(id string, o *unstructured.Unstructured) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner[c.keyOf(o)] == id
}

// scope is whether a kind has namespaces. Only the API server knows, and it may not have answered yet.
type scope int

const (
	unknownScope scope = iota
	clusterWide
	namespaced
)

// setScope records whether a kind has namespaces, and reassigns its objects if that is new.
func (c *Controller) setScope(gk schema.GroupKind, inNamespaces bool) {
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

// scopesFromRecords derives from the records which kinds are cluster-scoped, as long as the API server has not
// answered. c.mu must be held.
func (c *Controller) scopesFromRecords() {
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
