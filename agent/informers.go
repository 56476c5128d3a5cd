package agent

import "k8s.io/apimachinery/pkg/api/meta"

// withoutManagedFields drops what takes most of a small object's memory and nobody here reads.
func withoutManagedFields(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}
