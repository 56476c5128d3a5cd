package rules

import (
	"cmp"
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// Pod is a pod with addresses of its own: not one in its node's network, nor one that has ended.
type Pod struct {
	Namespace, Name string
	Labels          labels.Set
	Addrs           []netip.Addr
	Ports           []NamedPort
	// Local is true for a pod of this node: policies that select it are enforced here.
	Local bool
	// Of several pods with the same address one owns it: preferably one that the CNI plugin has Announced, then one
	// that is not Ending.
	Announced, Ending bool
}

// NamedPort is a port that policies can refer to by name.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// Policy is a NetworkPolicy.
type Policy struct {
	Namespace, Name string
	Pods            labels.Selector
	// Isolates is true for each direction in which only what Rules allow may pass.
	Isolates [2]bool
	Rules    [2][]Rule

	// What Limit has found out. refused says why the policy allows nothing, empty where it is in force as it is.
	cost    cost
	refused string
}

// Direction is seen from the pod that a policy selects.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// Rule allows what comes from, or goes to, one of Peers on one of Ports. Where there are none, it allows all.
type Rule struct {
	Peers []Peer
	Ports []Port
}

// Peer is pods or a range of addresses.
type Peer struct {
	// Pods selects among the pods of the namespaces that Namespaces selects; nil means all of them.
	Pods labels.Selector
	// Namespaces is nil for the policy's own.
	Namespaces labels.Selector
	// Block, where it is valid, stands in place of the selectors.
	Block  netip.Prefix
	Except []netip.Prefix
}

// Port is a range of ports of a protocol, or the one that a pod calls Name.
type Port struct {
	Protocol uint8
	Name     string
	From, To uint16
}

// key is namespace/name.
func key(namespace, name string) string { return namespace + "/" + name }

// short is a short name for something long.
func short(text string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

// numbered are the ports that have numbers: in order, without overlap.
func numbered(ports []Port) []Port {
	var in []Port
	for _, p := range ports {
		if p.Name == "" && p.From <= p.To {
			in = append(in, p)
		}
	}
	slices.SortFunc(in, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	var out []Port
	for _, p := range in {
		if n := len(out); n > 0 && out[n-1].Protocol == p.Protocol && uint32(p.From) <= uint32(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, p.To)
			continue
		}
		out = append(out, p)
	}
	return out
}

// selectorKey is the same for selectors that select the same pods by the same words.
func selectorKey(namespace string, namespaces, pods labels.Selector) string {
	if namespaces == nil {
		return "in " + namespace + ": " + text(pods)
	}
	return "where " + text(namespaces) + ": " + text(pods)
}

// text is a selector's, and not the same for nothing as for everything.
func text(s labels.Selector) string {
	if _, selectable := s.Requirements(); !selectable {
		return "nothing"
	}
	return s.String()
}

// exact is a label that every object has which the selector selects, if it says so.
func exact(s labels.Selector) (k, v string, ok bool) {
	reqs, selectable := s.Requirements()
	if !selectable {
		return "", "", false
	}
	for _, r := range reqs {
		switch r.Operator() {
		case "=", "==", "in":
			if vals := r.ValuesUnsorted(); len(vals) == 1 {
				return r.Key(), vals[0], true
			}
		}
	}
	return "", "", false
}

// normalize makes what means the same look the same.
func (p Pod) normalize() Pod {
	var addrs []netip.Addr
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.IsValid() && a.Zone() == "" && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	p.Addrs = addrs
	p.Ports = slices.Clone(p.Ports)
	slices.SortFunc(p.Ports, func(a, b NamedPort) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	p.Ports = slices.Compact(p.Ports)
	return p
}
