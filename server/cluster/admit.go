package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/joinapi"
)

// Admission takes further servers into the cluster, and drops those whose Node was deleted.
type Admission struct {
	cfg         Config
	authorities *Authorities
	log         *slog.Logger
}

var _ joinapi.Servers = (*Admission)(nil)

// Datastore returns the kind of datastore that further servers can share with this one, "" for none.
func (a *Admission) Datastore() joinwire.Datastore { return a.cfg.Shared }

// Settings returns the settings that all servers must have alike.
func (a *Admission) Settings() []joinwire.Setting { return a.cfg.Settings }

// probeTimeout bounds how long a connection between two servers may take.
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

// Check refuses a server that this one cannot reach, and returns the members that the other must reach.
func (a *Admission) Check(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	if r.Datastore != joinwire.Etcd {
		return &joinwire.ServerResponse{}, nil
	}
	cluster := a.cfg.Datastore.Etcd()
	if cluster == nil {
		return nil, joinwire.Refuse(joinwire.Starting, "the server is starting, try again")
	}
	if err := probe(ctx, r.Peer); err != nil {
		return nil, joinwire.Refuse(joinwire.Busy,
			"server %s cannot reach %s (%v): servers need 2380/tcp of each other, "+
				"in both directions; open it in the firewall of %s", a.cfg.Name, r.Peer, err, r.Name)
	}
	out := &joinwire.ServerResponse{}
	for _, m := range cluster.Members() {
		out.Members = append(out.Members, joinwire.Member{ID: m.ID, Name: m.Name, Peer: m.Peer, Learner: m.Learner,
			Needed: m.Leader || m.Self})
	}
	return out, nil
}

// Holds reports whether a member of the etcd cluster has a name.
func (a *Admission) Holds(name string) bool {
	return slices.ContainsFunc(a.cfg.Datastore.Members(), func(m etcd.Member) bool { return m.Name == name })
}

// Withdraw removes the member that Admit has added.
func (a *Admission) Withdraw(ctx context.Context, r *joinwire.ServerRequest) error {
	cluster := a.cfg.Datastore.Etcd()
	if cluster == nil {
		return nil
	}
	if _, err := cluster.Forget(ctx, r.Peer); err != nil && !errors.Is(err, etcd.ErrNoMember) &&
		!errors.Is(err, etcd.ErrHealthy) {
		return err
	}
	return nil
}

// Admit returns the cluster's keys and, where the servers are etcd themselves, adds a member.
func (a *Admission) Admit(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error) {
	out := &joinwire.ServerResponse{}
	var err error
	if out.Files, err = sharedfiles.Collect(a.cfg.Dirs); err != nil {
		return nil, err
	}
	if r.Datastore != joinwire.Etcd {
		return out, nil
	}
	cluster := a.cfg.Datastore.Etcd()
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

// Dismiss removes a server from the etcd cluster. A server does not remove itself: the others do.
func (a *Admission) Dismiss(ctx context.Context, name string) error {
	tokens, err := a.cfg.Access.Tokens()
	if err != nil {
		return err
	}
	if err := tokens.WithdrawNames(ctx, name); err != nil {
		return err
	}
	if err := a.authorities.forget(ctx, name); err != nil {
		return err
	}
	cluster := a.cfg.Datastore.Etcd()
	if cluster == nil || name == a.cfg.Name {
		return nil
	}
	for _, m := range cluster.Members() {
		if m.Name != name {
			continue
		}
		if err := cluster.RemoveMember(ctx, name); err != nil {
			return err
		}
		a.log.Info("a server was deleted, it is no member any more", "server", name)
	}
	return nil
}
