package server

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/joinapi"
)

// admission takes more servers into the cluster.
type admission struct{ s *Server }

var _ joinapi.Servers = admission{}

// Datastore is what more servers could share with this one.
func (a admission) Datastore() joinwire.Datastore { return sharedDatastore(a.s.datastoreConfig()) }

// sharedDatastore is empty where the datastore is one server's alone.
func sharedDatastore(c datastore.Config) joinwire.Datastore {
	switch {
	case c.Endpoint != "":
		return joinwire.External
	case datastore.Clustered(c):
		return joinwire.Etcd
	}
	return ""
}

// Settings are those that this server's configuration has.
func (a admission) Settings() []joinwire.Setting { return a.s.cfg.shared() }

// probeTimeout is how long a connection may take between two servers.
const probeTimeout = 3 * time.Second

// probe makes a connection to a server's port for members and closes it.
func probe(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

// Check says whether a server that wants to join can be reached by this one, and whom it must reach.
func (a admission) Check(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	if r.Datastore != joinwire.Etcd {
		return &joinwire.ServerResponse{}, nil
	}
	cluster := a.s.EtcdCluster()
	if cluster == nil {
		return nil, joinwire.Refuse(joinwire.Starting, "the server is starting, try again")
	}
	if err := probe(ctx, r.Peer); err != nil {
		return nil, joinwire.Refuse(joinwire.Busy, "server %s cannot reach %s (%v): servers need 2380/tcp of each other, in both directions; open it in the firewall of %s", a.s.etcdName(), r.Peer, err, r.Name)
	}
	out := &joinwire.ServerResponse{}
	for _, m := range cluster.Members() {
		out.Members = append(out.Members, joinwire.Member{ID: m.ID, Name: m.Name, Peer: m.Peer, Learner: m.Learner, Needed: m.Leader || m.Self})
	}
	return out, nil
}

// Holds says whether a name is a member's.
func (a admission) Holds(name string) bool {
	cluster := a.s.EtcdCluster()
	return cluster != nil && slices.ContainsFunc(cluster.Members(), func(m etcd.Member) bool { return m.Name == name })
}

// Withdraw takes the member out that Admit has made.
func (a admission) Withdraw(ctx context.Context, r *joinwire.ServerRequest) error {
	cluster := a.s.EtcdCluster()
	if cluster == nil {
		return nil
	}
	if _, err := cluster.Forget(ctx, r.Peer); err != nil && !errors.Is(err, etcd.ErrNoMember) && !errors.Is(err, etcd.ErrHealthy) {
		return err
	}
	return nil
}

// Admit hands the cluster's keys out and, where the servers are etcd themselves, makes room for one more.
func (a admission) Admit(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	out := &joinwire.ServerResponse{}
	var err error
	if out.Files, err = sharedfiles.Collect(a.s.dirs); err != nil {
		return nil, err
	}
	if r.Datastore != joinwire.Etcd {
		return out, nil
	}
	cluster := a.s.EtcdCluster()
	if cluster == nil {
		return nil, joinwire.Refuse(joinwire.Starting, "the server is starting, try again")
	}
	members, err := cluster.AddLearner(ctx, r.Name, r.Peer)
	switch {
	case errors.Is(err, etcd.ErrTaken):
		return nil, joinwire.Refuse(joinwire.NameTaken, "%v", err)
	case err != nil: // too few of its members answer, or another one is being taken in
		return nil, joinwire.Refuse(joinwire.Busy, "the cluster can take no server in at this moment: %v", err)
	}
	for _, m := range members {
		out.Members = append(out.Members, joinwire.Member{ID: m.ID, Name: m.Name, Peer: m.Peer, Learner: m.Learner})
	}
	return out, nil
}

// Dismiss takes a server's member out of the etcd cluster. A server does not take itself out: the others do.
func (a admission) Dismiss(ctx context.Context, name string) error {
	tokens, _, err := a.s.tokens()
	if err != nil {
		return err
	}
	if err := tokens.WithdrawNames(ctx, name); err != nil {
		return err
	}
	if err := a.s.forgetServer(ctx, name); err != nil {
		return err
	}
	cluster := a.s.EtcdCluster()
	if cluster == nil || name == a.s.etcdName() {
		return nil
	}
	for _, m := range cluster.Members() {
		if m.Name != name {
			continue
		}
		if err := cluster.RemoveMember(ctx, name); err != nil {
			return err
		}
		a.s.log.Info("a server was deleted, it is no member any more", "server", name, "component", "join")
	}
	return nil
}

// shared are the settings that all servers must have alike: what nodes are told, what several servers write
// into the same objects, and what is deployed.
func (c Config) shared() []joinwire.Setting {
	list := func(l []string) string { return strings.Join(l, ",") }
	set := func(l []string) string {
		l = slices.Clone(l)
		slices.Sort(l)
		return list(slices.Compact(l))
	}
	out := []joinwire.Setting{
		{Key: "cluster-cidr", Value: list(c.ClusterCIDR)},
		{Key: "service-cidr", Value: list(c.ServiceCIDR)},
		{Key: "service-node-port-range", Value: c.NodePorts},
		{Key: "cluster-dns", Value: list(c.DNS())},
		{Key: "cluster-domain", Value: c.ClusterDomain},
		{Key: "flannel-backend", Value: c.FlannelBackend},
		{Key: "load-balancer-pool", Value: set(c.LoadBalancers)},
		{Key: "disable", Value: set(c.Disable)},
		{Key: "https-listen-port", Value: strconv.Itoa(c.HTTPSPort)},
	}
	if len(c.ExternalIPs) > 0 { // older releases do not know it
		out = append(out, joinwire.Setting{Key: "service-external-ips", Value: set(c.ExternalIPs)})
	}
	return out
}
