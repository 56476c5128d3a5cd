package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

var (
	// ErrNoMember means that no member has the name.
	ErrNoMember = errors.New("no such member")
	// ErrTaken means that another member has the name or the address.
	ErrTaken = errors.New("another member has it")
)

// Members lists the cluster's members as this one knows them.
func (s *Server) Members() []Member {
	srv := s.etcd.Server
	return members(srv.Cluster().Members(), uint64(srv.Leader()), uint64(srv.MemberID()))
}

func members(all []*membership.Member, leader, self uint64) []Member {
	var out []Member
	for _, m := range all {
		o := Member{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner, Leader: uint64(m.ID) == leader, Self: uint64(m.ID) == self}
		if len(m.PeerURLs) > 0 {
			if u, err := url.Parse(m.PeerURLs[0]); err == nil {
				o.Peer = u.Host
			}
		}
		out = append(out, o)
	}
	return out
}

// AddLearner takes a server in that is about to start with an empty directory, and returns all members for
// its Config.Join. A member of the same name or address, whose directory must be lost, makes room first.
func (s *Server) AddLearner(ctx context.Context, name, peer string) ([]Member, error) {
	srv := s.etcd.Server
	fail := func(err error) ([]Member, error) {
		return nil, fmt.Errorf("add member %s at %s: %w", name, peer, err)
	}
	for _, m := range s.Members() {
		switch {
		case m.Self && (m.Name == name || m.Peer == peer):
			return fail(fmt.Errorf("%w: it is this server's own name or address", ErrTaken))
		case m.Peer == peer && m.Name == "":
			return s.Members(), nil // asked before and not started since
		case m.Name == name:
			if _, err := srv.RemoveMember(ctx, m.ID); err != nil {
				return fail(fmt.Errorf("remove its predecessor: %w", err))
			}
		case m.Peer == peer:
			return fail(fmt.Errorf("%w: the address is member %s's; delete that server's node first if it is gone", ErrTaken, m.Name))
		}
	}
	u := peerURL(peer)
	urls, err := types.NewURLs([]string{u.String()})
	if err != nil {
		return fail(err)
	}
	now := time.Now()
	all, err := srv.AddMember(ctx, *membership.NewMemberAsLearner("", urls, "", &now))
	if err != nil {
		return fail(err)
	}
	return members(all, uint64(srv.Leader()), uint64(srv.MemberID())), nil
}

// Promote makes a learner a voting member. Members that start do so by themselves; it fails while the
// learner has not caught up.
func (s *Server) Promote(ctx context.Context, name string) error {
	m, err := s.member(name)
	if err == nil && m.Learner {
		_, err = s.etcd.Server.PromoteMember(ctx, m.ID)
	}
	if err != nil {
		return fmt.Errorf("promote member %s: %w", name, err)
	}
	return nil
}

// RemoveMember takes a server out of the cluster. One that is not in it is no error.
func (s *Server) RemoveMember(ctx context.Context, name string) error {
	m, err := s.member(name)
	if errors.Is(err, ErrNoMember) {
		return nil
	}
	if err == nil {
		_, err = s.etcd.Server.RemoveMember(ctx, m.ID)
	}
	if errors.Is(err, membership.ErrIDRemoved) || errors.Is(err, membership.ErrIDNotFound) {
		return nil // another server was faster
	}
	if err != nil {
		return fmt.Errorf("remove member %s: %w", name, err)
	}
	return nil
}

func (s *Server) member(name string) (Member, error) {
	for _, m := range s.Members() {
		if m.Name == name && name != "" {
			return m, nil
		}
	}
	return Member{}, ErrNoMember
}

// Status returns the state at this moment.
func (s *Server) Status() Status {
	srv := s.etcd.Server
	b := srv.Backend()
	out := Status{Revision: s.Revision(), FileBytes: b.Size(), InUseBytes: b.SizeInUse(), Learner: srv.IsLearner(), HasLeader: srv.Leader() != 0, Members: s.Members()}
	for _, a := range srv.Alarms() {
		out.Alarms = append(out.Alarms, a.Alarm.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.defragErr != nil {
		out.DefragError = s.defragErr.Error()
	}
	return out
}
