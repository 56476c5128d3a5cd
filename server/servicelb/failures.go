package servicelb

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

// retries is the time between two attempts to write a status.
var retries = lifecycle.Policy{First: 200 * time.Millisecond, Most: time.Minute}

// failures are the Services whose status could not be written, each with its own time of the next attempt: a Service
// that is refused again and again, as by a webhook of its namespace, delays no other.
type failures map[types.NamespacedName]failure

// failure is one Service whose status could not be written.
type failure struct {
	version string // resourceVersion of the Service at the last attempt
	count   int    // attempts that failed one after the other
	next    time.Time
}

// waits reports whether the next attempt for a Service is not due. A Service that has changed since is tried at once.
func (f failures) waits(s *corev1.Service) bool {
	had, ok := f[name(s)]
	return ok && had.version == s.ResourceVersion && time.Now().Before(had.next)
}

// record takes the result of an attempt.
func (f failures) record(s *corev1.Service, err error) {
	n := name(s)
	if err == nil {
		delete(f, n)
		return
	}
	count := f[n].count + 1
	f[n] = failure{version: s.ResourceVersion, count: count, next: time.Now().Add(retries.Pause(count))}
}

// retain forgets the Services that are not there any more.
func (f failures) retain(there map[types.NamespacedName]bool) {
	maps.DeleteFunc(f, func(n types.NamespacedName, _ failure) bool { return !there[n] })
}

// next returns the time of the earliest attempt; ok is false if there is none.
func (f failures) next() (at time.Time, ok bool) {
	for _, one := range f {
		if !ok || one.next.Before(at) {
			at, ok = one.next, true
		}
	}
	return at, ok
}
