package tunnel

import "context"

// WaitSynced is waitSynced for tests.
func (n *Nodes) WaitSynced(ctx context.Context) error { return n.waitSynced(ctx) }

// Sessions returns how many connections from a node this end takes for alive.
func (t *Tunnels) Sessions(node string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.nodes[node])
}
