package apibalancer

import (
	"context"

	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/apiservers"
)

// Follow keeps the list what the cluster says it is, until ctx ends.
func (b *Balancer) Follow(ctx context.Context, client kubernetes.Interface) {
	err := apiservers.Follow(ctx, client, func(list []string) {
		// While nothing is there the servers are starting: what is known stays.
		if err := b.Set(list); err != nil {
			b.cfg.Log.Warn("cannot keep the list of servers", "error", err)
		}
	})
	if err != nil {
		b.cfg.Log.Warn("cannot follow the list of servers", "error", err)
	}
}
