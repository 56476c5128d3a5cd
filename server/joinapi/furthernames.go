package joinapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// withoutNames returns the addresses without some of the further names.
func (a addresses) withoutNames(names []string) addresses {
	a.Names = slices.DeleteFunc(slices.Clone(a.Names), func(n string) bool { return slices.Contains(names, n) })
	return a
}

// claims reports whether a name is a member's node name or one of its further names.
func (r *member) claims(name string) bool { return r.name == name || r.further(name) }

// further reports whether a member has recorded a further name.
func (r *member) further(name string) bool {
	return r.addrs != nil && slices.Contains(r.addrs.Names, name)
}

// precedes reports whether r, rather than o, has a name that both claim: a server before an agent's node, a node name
// before a further name, then the node that has joined first.
func (r *member) precedes(o *member, name string) bool {
	if r.server != o.server {
		return r.server
	}
	if own := r.name == name; own != (o.name == name) {
		return own
	}
	return r.created.Before(o.created) || r.created.Equal(o.created) && r.name < o.name
}

// named returns the node that has a name as its node name or as a further one, "" if none has.
func (m *Members) named(name string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	best := m.nodes[name]
	for _, n := range m.nodes {
		if n.claims(name) && (best == nil || n.precedes(best, name)) {
			best = n
		}
	}
	if best == nil {
		return ""
	}
	return best.name
}

// hasName reports whether a node has recorded a further name.
func (m *Members) hasName(node, name string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	rec := m.nodes[node]
	return rec != nil && rec.further(name)
}

// losers returns the agents' nodes other than one that have recorded a further name.
func (m *Members) losers(node, name string) (out []string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, n := range m.nodes {
		if n.name != node && !n.server && n.further(name) {
			out = append(out, n.name)
		}
	}
	return out
}

// nameTaken returns why a node cannot have a further name: another node has it, or it is that of a Service as pods
// resolve it (SERVICE.NAMESPACE). It is nil if the node can have it.
func (a *API) nameTaken(ctx context.Context, s *serving, node, name string) (taken, err error) {
	if holder := a.members.named(name); holder != "" && holder != node {
		return fmt.Errorf("the name %s is that of node %s: give this machine another "+
			"(node-internal-dns, node-external-dns), or delete that node", name, holder), nil
	}
	_, namespace, _ := strings.Cut(name, ".")
	if strings.Contains(namespace, ".") {
		return nil, nil
	}
	_, err = s.tokens.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	return fmt.Errorf("the name %s is that of a Service in namespace %s: give this machine another "+
		"(node-internal-dns, node-external-dns)", name, namespace), nil
}

// contestedNames returns why a machine that joins for the first time cannot have its names, nil if it can. Its node name
// may be a further name of an agent's node, which loses it, but not of a server's.
func (a *API) contestedNames(ctx context.Context, s *serving, n *node) (refused, err error) {
	if holder := a.members.named(n.name); holder != n.name && a.members.isServer(holder) {
		refused = fmt.Errorf("the name %s is that of server %s: set node-name to another", n.name, holder)
	}
	for _, name := range n.names {
		taken, err := a.nameTaken(ctx, s, n.name, name)
		if err != nil {
			return nil, err
		}
		refused = errors.Join(refused, taken)
	}
	return refused, nil
}

// dropNames removes from a request the further names that the node cannot have. The node gets certificates without
// them, so that a name that another node claims does not end its membership.
func (a *API) dropNames(ctx context.Context, s *serving, n *node) error {
	var free []string
	for _, name := range n.names {
		taken, err := a.nameTaken(ctx, s, n.name, name)
		switch {
		case err != nil:
			return err
		case taken != nil:
			a.cfg.Log.Warn("a node does not get one of its further names", "node", n.name, "name", name, "error", taken)
		default:
			free = append(free, name)
		}
	}
	n.names = free
	return nil
}

// takeNames removes a node's names from the further names of other agents' nodes. While that cannot be written, named
// prefers the node all the same.
func (a *API) takeNames(ctx context.Context, s *serving, n *node) {
	for _, name := range slices.Concat([]string{n.name}, n.names) {
		if name != n.name && a.members.named(name) != n.name {
			continue // nobody has recorded it
		}
		for _, loser := range a.members.losers(n.name, name) {
			if err := s.tokens.dropNames(ctx, loser, []string{name}); err != nil {
				a.cfg.Log.Warn("cannot remove a further name from a node", "node", loser, "name", name, "error", err)
				continue
			}
			a.cfg.Log.Warn("a name is another node's now", "name", name, "node", n.name, "before", loser)
		}
	}
}

// dropNames removes further names from the record of a node.
func (t Tokens) dropNames(ctx context.Context, node string, names []string) error {
	return t.record(ctx, node, func(m *member) (addresses, []string) {
		if m.addrs == nil {
			return addresses{}, m.keys
		}
		return m.addrs.withoutNames(names), m.keys
	})
}

// clearNames removes names from the records of all agents' nodes but one.
func (t Tokens) clearNames(ctx context.Context, node string, names []string) error {
	all, err := t.secrets().List(ctx, metav1.ListOptions{LabelSelector: Label + "=" + labelNode})
	if err != nil {
		return fmt.Errorf("list the names of nodes: %w", err)
	}
	var errs []error
	for i := range all.Items {
		m, ok := memberOf(&all.Items[i])
		if ok && m.name != node && !m.server && slices.ContainsFunc(names, m.further) {
			errs = append(errs, t.dropNames(ctx, m.name, names))
		}
	}
	return errors.Join(errs...)
}

// RefuseName returns why a node may not have a further name in its Node: it has not registered it, or another node has
// it; nil if it may.
func (a *API) RefuseName(node, name string) error {
	if node == a.members.self {
		return nil
	}
	if !a.members.hasName(node, name) {
		return errors.New("the node has not registered it; its agent does so when it starts with it " +
			"(node-internal-dns, node-external-dns)")
	}
	if holder := a.members.named(name); holder != node {
		return fmt.Errorf("it is that of node %s", holder)
	}
	return nil
}
