package joinapi

import (
	"context"
	"net/netip"
	"time"

	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/retry"
)

// Access reaches the tokens and node passwords through the API server of this process.
type Access struct {
	Clients kubeclient.Source
	// ServerCA returns the server CA, which tokens name by its hash, in PEM.
	ServerCA func() []byte
	// Secret returns a secret that only the servers of the cluster have; see Tokens.
	Secret func() ([]byte, error)
}

func (a Access) config() (*rest.Config, error) {
	rc, err := a.Clients.Config("umiak-join")
	if err != nil {
		return nil, err
	}
	rc.QPS = -1 // joining machines take turns, and the API server is this process
	return rc, nil
}

// Tokens returns the cluster's tokens, with the CA that is in force.
func (a Access) Tokens() (Tokens, error) {
	rc, err := a.config()
	if err != nil {
		return Tokens{}, err
	}
	client, err := kubeclient.Of(rc)
	if err != nil {
		return Tokens{}, err
	}
	ca, former, err := CAHash(a.ServerCA())
	return Tokens{Client: client, CA: ca, Former: former, Secret: a.Secret}, err
}

// Reserve takes a node's name for the machine with the password. It reports whether another machine had reserved the
// name.
func (a Access) Reserve(ctx context.Context, node, password string, ips []netip.Addr, names ...string) (taken bool,
	err error) {
	tokens, err := a.Tokens()
	if err != nil {
		return false, err
	}
	err = soon(ctx, func() (err error) {
		taken, err = tokens.Reserve(ctx, node, password, ips, names...)
		return err
	})
	return taken, err
}

// Bounds of soon, and of the pauses between its attempts.
const (
	soonTimeout  = 5 * time.Second
	minSoonDelay = 50 * time.Millisecond
	maxSoonDelay = time.Second
)

// soon repeats for a few seconds what the API server may refuse at the first start: it makes kube-system at about the
// same time. What it refuses for longer fails the part, which is started again.
func soon(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, soonTimeout)
	defer cancel()
	return retry.Do(ctx, retry.Backoff{First: minSoonDelay, Limit: maxSoonDelay}, nil,
		func(context.Context) error { return f() })
}
