package server

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

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
	client, err := s.client("umiak-servers", 0)
	if err != nil {
		return err
	}
	// This server's own address is among them as soon as it serves.
	return apiservers.Follow(ctx, client, func(all []string) {
		s.others.set(all)
		ready()
	})
}

// runElection decides whether this server or another does what only one may do.
func (s *Server) runElection(ctx context.Context, ready func()) error {
	client, err := s.client("umiak-election", electionTimeout)
	if err != nil {
		return err
	}
	return s.election.Run(ctx, client.CoordinationV1(), ready)
}

// electionTimeout is how long one request about the lease may take, so that there is time for another one.
const electionTimeout = 5 * time.Second

// ownConfig is how this process reaches its own API server for what it does itself.
func (s *Server) ownConfig() (*rest.Config, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.dirs.ServerKubeconfigs(), ownName+".kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the server's own kubeconfig: %w", err)
	}
	return rc, nil
}

// client is one of this process with a name of its own.
func (s *Server) client(name string, timeout time.Duration) (kubernetes.Interface, error) {
	rc, err := s.ownConfig()
	if err != nil {
		return nil, err
	}
	rc.Timeout = timeout
	c, err := kubernetes.NewForConfig(rest.AddUserAgent(rc, name))
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return c, nil
}
