package tunnel

import "context"

// WaitSynced is waitSynced for tests.
func (n *Nodes) WaitSynced(ctx context.Context) error { return n.waitSynced(ctx) }
