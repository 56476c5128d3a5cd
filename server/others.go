package server

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/internal/apiservers"
)

// others are the cluster's servers without this one.
type others struct {
	self string

	mu      sync.Mutex
	addrs   []string
	changed chan struct{}
}

func newOthers(self string) *others { return &others{self: self, changed: make(chan struct{})} }

// list are their addresses as HOST:PORT, and a channel that is closed when that changes.
func (o *others) list() ([]string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.addrs), o.changed
}

func (o *others) set(all []string) {
	all = slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == o.self })
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(all, o.addrs) {
		o.addrs = all
		close(o.changed)
		o.changed = make(chan struct{})
	}
}

// followOthers keeps the list what the servers say.
func (s *Server) followOthers(ctx context.Context, ready func()) error {
	rc, err := clientcmd.BuildConfigFromFlags("", s.AdminKubeconfig())
	if err != nil {
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rc, "umiak-servers"))
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	ready()
	return apiservers.Follow(ctx, client, s.others.set)
}
