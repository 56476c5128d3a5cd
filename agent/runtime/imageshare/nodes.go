package imageshare

import (
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unique"

	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// avoidFor is how long a node is left alone that did not answer, or gave what was not asked for.
const avoidFor = time.Minute

// mostAsked bounds how many nodes are asked for one thing, and how many of them at random.
const (
	mostAsked = 24
	atRandom  = 8
)

// neighbour is what is kept of a node.
type neighbour struct {
	name         string
	addrs        []netip.Addr
	server       bool
	repositories []string // that it has images of, as far as its status says
}

// neighbours are all nodes of the cluster, this one too. They stay as they were last known when no server
// answers.
type neighbours struct {
	self string

	mu    sync.RWMutex
	all   map[string]neighbour
	avoid map[string]aside
}

// aside is why a node is left alone.
type aside struct {
	until time.Time
	wrong bool // it gave what was not asked for, which no need excuses
}

func newNeighbours(self string) *neighbours {
	return &neighbours{self: self, all: map[string]neighbour{}, avoid: map[string]aside{}}
}

// What is kept and looked at of a node at most, whatever it says of itself: a kubelet names 50 images with 5 names each.
const (
	maxRepositories = 256
	maxImageNames   = 4 * maxRepositories
	maxNameLength   = 512
	maxAddresses    = 16
)

// Keep copies what is needed of a node besides its addresses. A node that it has been copied to may be given again.
func (n *neighbours) Keep(from, to *v1.Node) {
	if v, ok := from.Labels[wellknown.ServerRole]; ok {
		to.Labels = map[string]string{wellknown.ServerRole: v}
	}
	// Most nodes have images of the same repositories: one copy of each name does for all.
	var repositories []string
	seen, looked := map[string]bool{}, 0
	for name := range imageNames(from) {
		if looked++; looked > maxImageNames || len(repositories) == maxRepositories {
			break
		}
		if len(name) > maxNameLength {
			continue
		}
		if r := repositoryOf(name); strings.Contains(r, "/") && !seen[r] {
			seen[r] = true
			repositories = append(repositories, unique.Make(r).Value())
		}
	}
	if len(repositories) > 0 {
		to.Status.Images = []v1.ContainerImage{{Names: repositories}}
	}
}

// imageNames yields the names of the images that a node says it has.
func imageNames(n *v1.Node) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, i := range n.Status.Images {
			for _, name := range i.Names {
				if !yield(name) {
					return
				}
			}
		}
	}
}

// Set takes a node that has gone through Keep.
func (n *neighbours) Set(node *v1.Node) {
	h := neighbour{name: node.Name}
	_, h.server = node.Labels[wellknown.ServerRole]
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == v1.NodeInternalIP && len(h.addrs) < maxAddresses {
			h.addrs = append(h.addrs, ip)
		}
	}
	for name := range imageNames(node) {
		if len(h.repositories) == maxRepositories {
			break
		}
		h.repositories = append(h.repositories, name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.all[h.name]; !slices.Equal(old.addrs, h.addrs) {
		delete(n.avoid, h.name)
	}
	n.all[h.name] = h
}

// Remove forgets a node.
func (n *neighbours) Remove(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.all, name)
	delete(n.avoid, name)
}

// get returns a node of the cluster.
func (n *neighbours) get(name string) (neighbour, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	h, ok := n.all[name]
	return h, ok
}

// selfIsServer says whether this node is one that may say what a tag stands for.
func (n *neighbours) selfIsServer() bool {
	h, _ := n.get(n.self)
	return h.server
}

// others is how many nodes there are besides this one.
func (n *neighbours) others() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if _, ok := n.all[n.self]; ok {
		return len(n.all) - 1
	}
	return len(n.all)
}

// putAside leaves a node alone for a while.
func (n *neighbours) putAside(name string, wrong bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.all[name]; known && (!n.avoid[name].wrong || wrong) {
		n.avoid[name] = aside{time.Now().Add(avoidFor), wrong}
	}
}

// answered takes a node back that was put aside because it did not.
func (n *neighbours) answered(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, was := n.avoid[name]; was && !a.wrong {
		delete(n.avoid, name)
	}
}

// candidates are the nodes to ask for something, likely ones first: those that say that they have images of the
// repository, then servers, then others. Within these, chance spreads the load. In need, also those are asked that
// did not answer lately: they may be overrun.
func (n *neighbours) candidates(repository string, serversOnly, need bool) []neighbour {
	now := time.Now()
	var likely, servers, rest []neighbour
	n.mu.RLock()
	for name, h := range n.all {
		if name == n.self || len(h.addrs) == 0 || serversOnly && !h.server {
			continue
		}
		if a := n.avoid[name]; a.until.After(now) && (a.wrong || !need) {
			continue
		}
		if _, err := netip.ParseAddr(name); err == nil {
			continue // its certificate could not be told from one for an address
		}
		switch {
		case slices.Contains(h.repositories, repository):
			likely = append(likely, h)
		case h.server:
			servers = append(servers, h)
		default:
			rest = append(rest, h)
		}
	}
	n.mu.RUnlock()
	for _, l := range [][]neighbour{likely, servers, rest} {
		rand.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
	}
	all := slices.Concat(likely, servers, rest[:min(len(rest), atRandom)])
	return all[:min(len(all), mostAsked)]
}
