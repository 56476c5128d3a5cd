package cluster

import (
	"context"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/cluster/leader"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
)

// Config describes this server among the servers.
type Config struct {
	// Name is this server's name among the servers, which is its node's.
	Name string
	// Address is where other machines reach this server, HOST:PORT; "" is possible only where Shared is "".
	Address string
	Dirs    layout.Dirs
	// Settings are those that all servers must have alike.
	Settings []joinwire.Setting
	// Shared is the kind of datastore that the servers share; "" means that this server can have no others beside it.
	Shared joinwire.Datastore
	// Joining means that this server was taken into an etcd cluster and has no state yet.
	Joining bool
	// Reset means that this server makes a cluster of itself alone, out of the state that it has.
	Reset bool

	PKI       *pki.PKI
	Datastore *storage.Current
	Tunnels   Tunnels
	// Clients makes clients of this server's API server, with all rights.
	Clients kubeclient.Source
	// Access reaches the cluster's tokens through this server's API server.
	Access joinapi.Access
	// TakenOver is called when other authorities or another ServiceAccount key are in force here; it must not block.
	TakenOver func()
	Log       *slog.Logger
}

// SharedKind returns the kind of datastore that several servers share, "" where it is one server's alone.
func SharedKind(c datastore.Config) joinwire.Datastore {
	switch {
	case c.Endpoint != "":
		return joinwire.External
	case datastore.Clustered(c):
		return joinwire.Etcd
	}
	return ""
}

// External reports whether the state is in an external database.
func (c Config) External() bool { return c.Shared == joinwire.External }

// Cluster is this server's part in the cluster.
type Cluster struct {
	Peers       *Peers
	Election    *leader.Election
	Authorities *Authorities
	Record      *KeyRecord
	Keys        *SharedKeys
	Admission   *Admission

	cfg Config
}

// New returns the part of a server that starts. It runs nothing.
func New(cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, Peers: newPeers(cfg.Address, cfg.Clients.Maker("umiak-servers")),
		Election: leader.New(cfg.Name, cfg.Log)}
	stale := lifecycle.NewSignal()
	var err error
	if c.Authorities, err = newAuthorities(cfg, c.Peers, func() { cfg.TakenOver(); stale.Set() }); err != nil {
		return nil, err
	}
	adopted := lifecycle.NewSignal()
	sharing := encryption.NewSharing(encryption.SharingConfig{
		File: cfg.Dirs.EncryptionConfig(), Secret: cfg.PKI.SharedSecret, Current: c.Authorities.current,
		Adopted: adopted.Set, Log: cfg.Log,
	})
	log := cfg.Log.With("component", "join")
	c.Record = &KeyRecord{cfg: cfg, peers: c.Peers, authorities: c.Authorities, encryption: sharing, stale: stale,
		log: log}
	c.Keys = &SharedKeys{cfg: cfg, peers: c.Peers, authorities: c.Authorities, encryption: sharing, stale: stale,
		adopted: adopted, log: cfg.Log}
	c.Admission = &Admission{cfg: cfg, authorities: c.Authorities, log: log}
	return c, nil
}

// Several reports whether this server can have others beside it.
func (c *Cluster) Several() bool { return c.cfg.Shared != "" }

// Claimer returns what claims the datastore when it is open, nil where it is this server's alone.
func (c *Cluster) Claimer() storage.Claimer {
	if !c.Several() {
		return nil
	}
	return c.Record
}

// nodeTimeout bounds one request about a server's node.
const nodeTimeout = 5 * time.Second

// HasLeft reports whether another server is no part of the cluster any more: it is no member of etcd, or, where the
// servers share a database, its node was deleted. node means that it had one.
func (c *Cluster) HasLeft(ctx context.Context, name string, node bool) (bool, error) {
	if e := c.cfg.Datastore.Etcd(); e != nil {
		return !slices.ContainsFunc(e.Members(), func(m etcd.Member) bool { return m.Name == name }), nil
	}
	if !node {
		return false, nil
	}
	client, err := c.cfg.Clients.Client("umiak-manifests", nodeTimeout)
	if err != nil {
		return false, err
	}
	_, err = client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

// electionTimeout bounds one request about the lease, so that there is time for another one.
const electionTimeout = 5 * time.Second

// Elect decides whether this server or another does what only one may do, until ctx ends.
func (c *Cluster) Elect(ctx context.Context, ready func()) error {
	client, err := c.cfg.Clients.Client("umiak-election", electionTimeout)
	if err != nil {
		return err
	}
	return c.Election.Run(ctx, client.CoordinationV1(), ready)
}
