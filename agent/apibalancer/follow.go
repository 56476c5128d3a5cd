package apibalancer

import (
	"context"

	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/apiservers"
)

// Follow applies the cluster's list of servers until ctx ends.
func (b *Balancer) Follow(ctx context.Context, client kubernetes.Interface) {
	err := apiservers.Follow(ctx, client, func(list []string) {
		// Set ignores an empty list: the servers are starting.
		if err := b.Set(list); err != nil {
			b.cfg.Log.Warn("cannot store the list of servers", "error", err)
		}
	})
	if err != nil {
		b.cfg.Log.Warn("cannot follow the list of servers", "error", err)
	}
}
