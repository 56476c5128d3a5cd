package storage

import (
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/snapshot"
)

// errNotOpen means that the datastore has not been opened yet.
var errNotOpen = errors.New("the datastore is not open yet")

// stallTimeout bounds how long the datastore may take to answer before it counts as stalled.
const stallTimeout = 500 * time.Millisecond

// Current is the server's datastore while it is open. The zero value is one that is not open.
type Current struct {
	mu    sync.Mutex
	store datastore.Store
}

// Open returns the Current of a store that is open.
func Open(st datastore.Store) *Current { return &Current{store: st} }

// Store returns the datastore, nil while it is not open.
func (c *Current) Store() datastore.Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store
}

func (c *Current) set(st datastore.Store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store = st
}

// Client connects to the datastore. The caller closes the client.
func (c *Current) Client(ctx context.Context) (*clientv3.Client, error) {
	st := c.Store()
	if st == nil {
		return nil, errNotOpen
	}
	return datastore.Client(ctx, st)
}

// Snapshots returns what snapshots are made of, nil while the datastore is not open.
func (c *Current) Snapshots() snapshot.Source {
	if st := c.Store(); st != nil {
		return st
	}
	return nil
}

// Etcd returns the etcd cluster of which this server is a member; nil while the datastore is not open, and where it is
// something else.
func (c *Current) Etcd() datastore.Cluster {
	e, _ := c.Store().(datastore.Cluster)
	return e
}

// Members returns the members of the etcd cluster, none where Etcd is nil.
func (c *Current) Members() []etcd.Member {
	if e := c.Etcd(); e != nil {
		return e.Members()
	}
	return nil
}

// Status asks the datastore for its status.
func (c *Current) Status(ctx context.Context) (datastore.Status, error) {
	st := c.Store()
	if st == nil {
		return datastore.Status{}, errNotOpen
	}
	return st.Status(ctx)
}

// Check returns what is wrong with the datastore. One that answers reads and takes no writes is not healthy.
func (c *Current) Check(ctx context.Context) error {
	d, err := c.Status(ctx)
	if err != nil {
		return err
	}
	return d.Failing()
}

// Stalled reports whether the datastore does not answer.
func (c *Current) Stalled(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	_, err := c.Status(ctx)
	return err != nil
}
