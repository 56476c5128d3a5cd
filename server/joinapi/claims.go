package joinapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
)

// Limits of the names that machines get with one token. Each name is a Secret and a certificate; a token from a stolen
// SD card could take any number.
const (
	// maxPending bounds the names of one token whose Nodes have not registered.
	maxPending = 256
	// claimBurst names are given at once, on each server, then claimsPerSecond.
	claimBurst      = 512
	claimsPerSecond = 2
)

// claims limits the names that machines get, by token. The zero value is ready to use.
type claims struct {
	mu      sync.Mutex
	limits  map[string]*rate.Limiter // by the token's id; tokens are the administrators'
	nodes   atomic.Pointer[func(name string) bool]
	freeing sync.Mutex
}

// follow sets the function that reports which Nodes exist. Until then, names are limited by their rate alone.
func (c *claims) follow(there func(name string) bool) { c.nodes.Store(&there) }

// take counts one name for a token and reports whether it may have it now.
func (c *claims) take(id string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.limits[id]
	if l == nil {
		if c.limits == nil {
			c.limits = map[string]*rate.Limiter{}
		}
		l = rate.NewLimiter(claimsPerSecond, claimBurst)
		c.limits[id] = l
	}
	return l.AllowN(now, 1)
}

// mayClaim refuses a new name to a token with which too many names are held for machines that never came, or too many
// were given a moment ago. A machine that is refused asks again, so a fleet that starts at once joins in portions.
func (a *API) mayClaim(ctx context.Context, s *serving, id string) error {
	if len(a.pending(s, id)) >= maxPending {
		a.freePending(ctx, s, id)
		return joinwire.Refuse(joinwire.Busy,
			"%d machines have joined with token %s whose nodes have not registered; asking again. If these are not your machines, revoke it: `umiak token revoke %s` on a server", maxPending, id, id)
	}
	if !a.claims.take(id, a.cfg.Now()) {
		return joinwire.Refuse(joinwire.Busy,
			"too many machines have joined with token %s in a short time; asking again", id)
	}
	return nil
}

// pending are the names that machines hold with a token without a Node. It is nil while the Nodes are not known.
func (a *API) pending(s *serving, id string) (out []*corev1.Secret) {
	there := a.claims.nodes.Load()
	if there == nil {
		return nil
	}
	all, err := s.known.secrets.List(labels.SelectorFromSet(labels.Set{Label: labelNode}))
	if err != nil {
		return nil // a lister of what is in memory does not fail
	}
	for _, secret := range all {
		name, ok := nodeOf(secret)
		if ok && string(secret.Data[keyToken]) == id && !(*there)(name) {
			out = append(out, secret)
		}
	}
	return out
}

// freePending gives up those names of a token that no machine has come for in the time that one may take.
func (a *API) freePending(ctx context.Context, s *serving, id string) {
	if !a.claims.freeing.TryLock() {
		return // another request does it
	}
	defer a.claims.freeing.Unlock()
	freed := 0
	for _, secret := range a.pending(s, id) {
		if freed == maxPending || ctx.Err() != nil {
			return
		}
		if a.abandoned(secret) {
			name, _ := nodeOf(secret) // pending are nodes'
			a.free(ctx, s, name)
			freed++
		}
	}
}

// abandoned reports whether a name without a Node has been held for longer than a node takes to register. A server
// may be one without a node; `umiak server forget` frees its name.
func (a *API) abandoned(secret *corev1.Secret) bool {
	name, _ := nodeOf(secret)
	return string(secret.Data[keyKind]) != string(token.Server) && !a.cfg.Servers.Holds(name) &&
		!secret.CreationTimestamp.IsZero() && a.cfg.Now().Sub(secret.CreationTimestamp.Time) >= registerTimeout
}
