// Package cachetrim keeps the caches of umiak's own controllers small.
//
// The controllers in server's folders use it. It imports apimachinery and the core API alone.
package cachetrim

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Object is an informer's transform: it drops what none of them looks at.
func Object(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	if n, ok := o.(*corev1.Node); ok {
		n.Status.Images, n.Status.Capacity, n.Status.Allocatable = nil, nil, nil
		n.Status.VolumesAttached, n.Status.VolumesInUse = nil, nil
	}
	return o, nil
}
