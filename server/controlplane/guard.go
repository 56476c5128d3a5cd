package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server/admission"
)

// Nodes are those that have joined.
type Nodes interface {
	admission.Addresses
	// Admits refuses the client certificate of a node that has been deleted since, or of a machine that had its name
	// before. local is for connections from this machine.
	Admits(ctx context.Context, node string, key []byte, local bool) error
	// OnLeave has f called when certificates of a node may not count any more.
	OnLeave(f func(node string))
}

// guard ends what nodes may do that are not the cluster's any more: their certificates are good for weeks.
type guard struct {
	nodes Nodes

	mu      sync.Mutex
	running map[string]map[*visit]struct{}
}

// visit is a request of a node.
type visit struct {
	ctx   context.Context
	end   context.CancelCauseFunc
	key   []byte
	local bool
}

func newGuard(n Nodes) *guard {
	g := &guard{nodes: n, running: map[string]map[*visit]struct{}{}}
	if n != nil { // settings that are only checked have none
		n.OnLeave(func(node string) { go g.look(node) })
	}
	return g
}

var errLeft = errors.New("the node is not the cluster's any more")

// before lets requests of nodes through to next while the node is the cluster's. It stands behind authentication,
// which has verified the certificate.
func (g *guard) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		leaf := r.TLS.PeerCertificates[0]
		node, ok := wellknown.MachineOf(leaf.Subject.CommonName, leaf.Subject.Organization)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		run := &visit{key: leaf.RawSubjectPublicKeyInfo, local: fromHere(r)}
		run.ctx, run.end = context.WithCancelCause(r.Context())
		defer run.end(nil)
		g.add(node, run) // first, so that who leaves meanwhile is seen by one of the two
		defer g.remove(node, run)
		if err := g.nodes.Admits(r.Context(), node, run.key, run.local); err != nil {
			refuse(w, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(run.ctx))
	})
}

func (g *guard) add(node string, r *visit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running[node] == nil {
		g.running[node] = map[*visit]struct{}{}
	}
	g.running[node][r] = struct{}{}
}

func (g *guard) remove(node string, r *visit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if delete(g.running[node], r); len(g.running[node]) == 0 {
		delete(g.running, node)
	}
}

// look ends the requests, watches above all, of a node that has left.
func (g *guard) look(node string) {
	g.mu.Lock()
	var all []*visit
	for r := range g.running[node] {
		all = append(all, r)
	}
	g.mu.Unlock()
	for _, r := range all {
		if err := g.nodes.Admits(r.ctx, node, r.key, r.local); err != nil {
			r.end(errLeft)
		}
	}
}

// fromHere reports whether a request comes from this machine.
func fromHere(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	if from.Addr().Unmap().IsLoopback() {
		return true
	}
	to, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(to.String())
	return err == nil && at.Addr().Unmap() == from.Addr().Unmap()
}

func refuse(w http.ResponseWriter, err error) {
	status := apierrors.NewUnauthorized(err.Error()).Status()
	if s := apierrors.APIStatus(nil); errors.As(err, &s) { // it is not known yet
		status = s.Status()
		w.Header().Set("Retry-After", "1")
	}
	status.Kind, status.APIVersion = "Status", "v1"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status) // who has gone away does not care
}
