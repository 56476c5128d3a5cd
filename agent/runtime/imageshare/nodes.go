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

	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// avoidTime is how long a node is not asked after it did not answer, or sent wrong content.
const avoidTime = time.Minute

// maxAsked bounds how many nodes are asked for one object; maxRandom how many of them are chosen at random.
const (
	maxAsked  = 24
	maxRandom = 8
)

// neighbour is what is stored of a node.
type neighbour struct {
	name         string
	addrs        []netip.Addr
	server       bool
	repositories []string // of the images that its status lists
}

// neighbours are all nodes of the cluster, including this one. They stay as last seen while no server answers.
type neighbours struct {
	self string

	mu    sync.RWMutex
	all   map[string]neighbour
	avoid map[string]avoidance // nodes that are not asked
}

// avoidance records why and until when a node is not asked.
type avoidance struct {
	until time.Time
	wrong bool // it sent wrong content; then it is not asked in any case
}

func newNeighbours(self string) *neighbours {
	return &neighbours{self: self, all: map[string]neighbour{}, avoid: map[string]avoidance{}}
}

// Bounds on what is read of a Node, whose content the node controls. A kubelet lists 50 images with 5 names each.
const (
	maxRepositories = 256
	maxImageNames   = 4 * maxRepositories
	maxNameLength   = 512
	maxAddresses    = 16
)

// Keep copies the needed fields of a node except its addresses. Its result may be passed in again.
func (n *neighbours) Keep(from, to *v1.Node) {
	if v, ok := from.Labels[wellknown.ServerRole]; ok {
		to.Labels = map[string]string{wellknown.ServerRole: v}
	}
	// Most nodes have images of the same repositories: intern the names.
	var repositories []string
	seen, looked := map[string]bool{}, 0
	for name := range imageNames(from) {
		if looked++; looked > maxImageNames || len(repositories) == maxRepositories {
			break
		}
		if len(name) > maxNameLength {
			continue
		}
		if r := images.RepositoryOf(name); strings.Contains(r, "/") && !seen[r] {
			seen[r] = true
			repositories = append(repositories, unique.Make(r).Value())
		}
	}
	if len(repositories) > 0 {
		to.Status.Images = []v1.ContainerImage{{Names: repositories}}
	}
}

// imageNames yields the names of the images in a node's status.
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

// Set adds or updates a node that Keep has reduced.
func (n *neighbours) Set(node *v1.Node) {
	h := neighbour{name: node.Name}
	_, h.server = node.Labels[wellknown.ServerRole]
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == v1.NodeInternalIP &&
			len(h.addrs) < maxAddresses {
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

// Remove removes a node.
func (n *neighbours) Remove(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.all, name)
	delete(n.avoid, name)
}

// get returns a node of the cluster, false if there is none of that name.
func (n *neighbours) get(name string) (neighbour, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	h, ok := n.all[name]
	return h, ok
}

// selfIsServer reports whether this node is a server, which may resolve tags.
func (n *neighbours) selfIsServer() bool {
	h, _ := n.get(n.self)
	return h.server
}

// others returns the number of nodes besides this one.
func (n *neighbours) others() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if _, ok := n.all[n.self]; ok {
		return len(n.all) - 1
	}
	return len(n.all)
}

// avoidNode excludes a node for avoidTime.
func (n *neighbours) avoidNode(name string, wrong bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.all[name]; ok && (!n.avoid[name].wrong || wrong) {
		n.avoid[name] = avoidance{time.Now().Add(avoidTime), wrong}
	}
}

// answered includes a node again that was excluded because it did not answer.
func (n *neighbours) answered(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, was := n.avoid[name]; was && !a.wrong {
		delete(n.avoid, name)
	}
}

// candidates returns the nodes to ask for an object, in order: nodes whose status lists images of the repository, then
// servers, then others, shuffled within each group. need includes nodes that recently did not answer: they may have
// been overloaded.
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
			continue // a certificate for that name would also match an address
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
	all := slices.Concat(likely, servers, rest[:min(len(rest), maxRandom)])
	return all[:min(len(all), maxAsked)]
}
