package joinapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/token"
)

// What the Secret of a node's password holds besides. Nodes that joined before there was such a record have none
// until they renew or check their certificates.
const (
	keyAddresses = "addresses" // JSON of addresses
	keyKeys      = "keys"      // JSON of the hashes of the keys of its client certificates
)

// maxKeys bounds the valid keys of a node: those of two certificates, and the two before.
const maxKeys = 4

// addresses are those that a node has registered. IPs are unique among nodes; External may be a router's, which several
// have. Proven are those of both from which the node has sent requests, so that no other node has them. First are those
// of its first record, which was made with a token.
type addresses struct {
	IPs      []netip.Addr `json:"ips"`
	External []netip.Addr `json:"external,omitempty"`
	Proven   []netip.Addr `json:"proven,omitempty"`
	First    []netip.Addr `json:"first,omitempty"`
	// Names are further names of the node; of several nodes that have recorded one, Members.named has it.
	Names []string `json:"names,omitempty"`
}

func (a addresses) equal(b addresses) bool {
	return slices.Equal(a.IPs, b.IPs) && slices.Equal(a.External, b.External) && slices.Equal(a.Proven, b.Proven) &&
		slices.Equal(a.First, b.First) && slices.Equal(a.Names, b.Names)
}

// without are those that are left when another node has got one.
func (a addresses) without(ip netip.Addr) addresses {
	but := func(list []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(list), func(x netip.Addr) bool { return x == ip })
	}
	return addresses{IPs: but(a.IPs), External: a.External, Proven: but(a.Proven), First: but(a.First), Names: a.Names}
}

// member is the record of a node that has joined.
type member struct {
	name    string
	created time.Time
	server  bool
	addrs   *addresses // nil where there is no record
	keys    []string
}

// memberOf reads a Secret; ok is false where it is not a node's.
func memberOf(s *corev1.Secret) (m *member, ok bool) {
	name, ok := nodeOf(s)
	if !ok || s.Type != nodeType {
		return nil, false
	}
	m = &member{name: name, created: s.CreationTimestamp.Time, server: string(s.Data[keyKind]) == string(token.Server)}
	if raw, ok := s.Data[keyAddresses]; ok {
		m.addrs = &addresses{}
		_ = json.Unmarshal(raw, m.addrs) // what cannot be read grants nothing
	}
	_ = json.Unmarshal(s.Data[keyKeys], &m.keys) // as above
	return m, true
}

// Members knows which nodes have joined: whose certificates count, and which addresses are whose. It follows the
// Secrets of node passwords while API.Run runs; from ask to then it reads them one by one.
type Members struct {
	self   string
	ranges []netip.Prefix // of Services and pods

	mu     sync.RWMutex
	client kubernetes.Interface // nil until the Secrets can be read
	nodes  map[string]*member
	addrs  map[netip.Addr][]string
	left   []func(node string)
	// missed are nodes that have just been looked for in vain.
	missed map[string]time.Time
	news   chan struct{} // closed when a node has other addresses, and replaced
}

// newMembers returns Members without records. self is the node of this server, which is never refused: it has the
// cluster's keys.
func newMembers(self string, ranges ...netip.Prefix) *Members {
	return &Members{self: self, ranges: ranges, nodes: map[string]*member{}, addrs: map[netip.Addr][]string{},
		missed: map[string]time.Time{}, news: make(chan struct{})}
}

// OnLeave has f called when certificates of a node may not count any more; without a name where that may be so of all
// nodes. It must not block. Call it before API.Run.
func (m *Members) OnLeave(f func(node string)) { m.left = append(m.left, f) }

// ask sets the client with which records are read; from then on nodes without a record are refused.
func (m *Members) ask(client kubernetes.Interface) {
	m.mu.Lock()
	first := m.client == nil
	m.client = client
	m.mu.Unlock()
	if first {
		m.tell("")
	}
}

// asks reports whether ask was called.
func (m *Members) asks() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.client != nil
}

// set takes a Secret as it is now.
func (m *Members) set(s *corev1.Secret) {
	now, ok := memberOf(s)
	if !ok {
		return
	}
	m.mu.Lock()
	was := m.nodes[now.name]
	m.drop(was)
	m.nodes[now.name] = now
	delete(m.missed, now.name)
	if now.addrs != nil {
		for _, a := range now.addrs.IPs {
			m.addrs[a] = append(m.addrs[a], now.name)
		}
	}
	if was == nil || (was.addrs == nil) != (now.addrs == nil) || now.addrs != nil && !now.addrs.equal(*was.addrs) {
		m.moved()
	}
	m.mu.Unlock()
	if was != nil && !slices.Equal(was.keys, now.keys) {
		m.tell(now.name)
	}
}

// gone takes that a Secret has been deleted.
func (m *Members) gone(s *corev1.Secret) {
	was, ok := memberOf(s)
	if !ok {
		return
	}
	m.mu.Lock()
	m.drop(m.nodes[was.name])
	delete(m.nodes, was.name)
	m.moved()
	m.mu.Unlock()
	m.tell(was.name)
}

// Changed is closed when nodes have other addresses than now.
func (m *Members) Changed() <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.news
}

// moved closes it; m.mu is held.
func (m *Members) moved() {
	close(m.news)
	m.news = make(chan struct{})
}

func (m *Members) drop(was *member) {
	if was == nil || was.addrs == nil {
		return
	}
	for _, a := range was.addrs.IPs {
		m.addrs[a] = slices.DeleteFunc(slices.Clone(m.addrs[a]), func(n string) bool { return n == was.name })
		if len(m.addrs[a]) == 0 {
			delete(m.addrs, a)
		}
	}
}

func (m *Members) tell(node string) {
	for _, f := range m.left {
		f(node)
	}
}

// missFor bounds how long the absence of a record is cached, and maxMissed for how many names.
const (
	missFor   = 2 * time.Second
	maxMissed = 1024
)

// Admits refuses the client certificate of a node that has been deleted, or of a machine that had the name before.
// The caller has verified the certificate. local is for what comes from this machine, whose own node is not refused.
func (m *Members) Admits(ctx context.Context, node string, key []byte, local bool) error {
	m.mu.RLock()
	client, rec, missed := m.client, m.nodes[node], m.missed[node]
	m.mu.RUnlock()
	if local && node == m.self && m.self != "" {
		return nil
	}
	if client == nil {
		return apierrors.NewServiceUnavailable("the server is starting, try again")
	}
	err := rec.admits(node, key)
	if err == nil || time.Since(missed) < missFor {
		return err
	}
	// The watch may be a moment behind: the node may have joined on another server.
	s, getErr := client.CoreV1().Secrets(Namespace).Get(ctx, node+nodeSuffix, metav1.GetOptions{})
	if getErr != nil && !apierrors.IsNotFound(getErr) {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("cannot read the record of node %s: %v", node, getErr))
	}
	if getErr == nil {
		if now, ok := memberOf(s); ok {
			if err = now.admits(node, key); err == nil {
				return nil
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.missed) >= maxMissed {
		clear(m.missed)
	}
	m.missed[node] = time.Now()
	return err
}

// admits returns an error for a key that is not one of the member's. A nil member refuses all keys.
func (r *member) admits(node string, key []byte) error {
	switch {
	case r == nil:
		return fmt.Errorf("node %s was deleted from the cluster; to have it back, restart it with a token", node)
	case r.server, len(r.keys) == 0, slices.Contains(r.keys, KeyHash(key)):
		return nil
	}
	return fmt.Errorf("another machine has joined as node %s since; set node-name to another name, and restart this one with a token", node)
}

// KeyHash returns the form of a public key, an x509.Certificate.RawSubjectPublicKeyInfo, in the record of a node.
func KeyHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// keysOf are the hashes of the keys of client certificates that are asked for, before those that the node has had.
func keysOf(had []string, asked ...*x509.CertificateRequest) []string {
	var out []string
	for _, c := range asked {
		if h := KeyHash(c.RawSubjectPublicKeyInfo); !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	for _, h := range had {
		if !slices.Contains(out, h) && len(out) < maxKeys {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return out
}

// holder is the node that has registered an address: a server, else one that has asked from it, else the one that has
// joined first; empty if none has.
func (m *Members) holder(a netip.Addr) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var best *member
	for _, name := range m.addrs[a] {
		n := m.nodes[name]
		if n == nil {
			continue
		}
		if best == nil || n.before(best, a) {
			best = n
		}
	}
	if best == nil {
		return ""
	}
	return best.name
}

// before reports whether an address that both have registered is r's.
func (r *member) before(o *member, a netip.Addr) bool {
	if r.server != o.server {
		return r.server
	}
	if p := r.proven(a); p != o.proven(a) {
		return p
	}
	return r.created.Before(o.created) || r.created.Equal(o.created) && r.name < o.name
}

// proven reports whether a node has asked from an address that it has registered.
func (r *member) proven(a netip.Addr) bool {
	return r != nil && r.addrs != nil && slices.Contains(r.addrs.Proven, a)
}

// Disputed reports whether an address that is attributed to a node belongs to another node or to the cluster's ranges.
func (m *Members) Disputed(node string, a netip.Addr) bool {
	if slices.ContainsFunc(m.ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return true
	}
	h := m.holder(a)
	return h != "" && h != node
}

// Supported reports whether an address of a node has evidence beside the node's own report: requests came from it, or
// it is in the node's first record. It is true for servers, which have the cluster's keys, and for nodes without a
// record.
func (m *Members) Supported(node string, a netip.Addr) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	rec := m.nodes[node]
	return rec == nil || rec.server || rec.addrs == nil || rec.proven(a) || slices.Contains(rec.addrs.First, a)
}

// Unregistered reports whether a node that has a record has not registered an address.
func (m *Members) Unregistered(node string, a netip.Addr) bool {
	has, recorded := m.registered(node, a, true)
	return recorded && !has && !m.isServer(node)
}

// isServer reports whether a server has joined under the name of a node.
func (m *Members) isServer(node string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.nodes[node] != nil && m.nodes[node].server
}

// registered reports whether a node has registered an address, and whether there is a record of its addresses at all.
func (m *Members) registered(node string, a netip.Addr, external bool) (has, recorded bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	rec := m.nodes[node]
	if rec == nil || rec.addrs == nil {
		return false, false
	}
	return slices.Contains(rec.addrs.IPs, a) || external && slices.Contains(rec.addrs.External, a), true
}

// recordless reports whether there is no record yet of the addresses of a node.
func (m *Members) recordless(node string) bool {
	_, recorded := m.registered(node, netip.Addr{}, false)
	return !recorded
}
