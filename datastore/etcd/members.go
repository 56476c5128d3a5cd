package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
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

// Members returns the member list as this member has it, sorted by name and address.
func (s *Server) Members() []Member {
	srv := s.etcd.Server
	out := members(srv.Cluster().Members(), uint64(srv.Leader()), uint64(srv.MemberID()))
	for i := range out {
		out[i].Unreachable = !out[i].Self && !s.reachable(out[i].ID)
	}
	slices.SortFunc(out, func(x, y Member) int { return strings.Compare(x.Name+"/"+x.Peer, y.Name+"/"+y.Peer) })
	return out
}

func members(all []*membership.Member, leader, self uint64) []Member {
	var out []Member
	for _, m := range all {
		o := Member{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner, Leader: uint64(m.ID) == leader,
			Self: uint64(m.ID) == self}
		if len(m.PeerURLs) > 0 {
			if u, err := url.Parse(m.PeerURLs[0]); err == nil {
				o.Peer = u.Host
			}
		}
		out = append(out, o)
	}
	return out
}

// AddLearner adds a server that is about to start with an empty directory, and returns all members for its Config.Join.
// A member of the same name is removed first, since its directory must be lost, unless it answers at another address:
// that is another machine, and the error is ErrTaken.
func (s *Server) AddLearner(ctx context.Context, name, peer string) ([]Member, error) {
	srv := s.etcd.Server
	fail := func(err error) ([]Member, error) {
		return nil, fmt.Errorf("add member %s at %s: %w", name, peer, err)
	}
	if err := srv.LinearizableReadNotify(ctx); err != nil { // without it the list may be out of date
		return fail(err)
	}
	var predecessors []Member
	for _, m := range s.Members() {
		switch {
		case m.Self && (m.Name == name || m.Peer == peer):
			return fail(fmt.Errorf("%w: it is this server's own name or address", ErrTaken))
		case m.Peer == peer && m.Name == "":
			return s.Members(), nil // added before and not started since
		case m.Name == name && m.Peer != peer && !m.Unreachable:
			return fail(fmt.Errorf("%w: member %s answers at %s; give this server another node-name, or, if it "+
				"replaces that one, stop that one first", ErrTaken, name, m.Peer))
		case m.Name == name:
			predecessors = append(predecessors, m)
		case m.Peer == peer:
			return fail(fmt.Errorf("%w: the address is member %s's; if that server is gone, `umiak server forget "+
				"%s` on another one", ErrTaken, m.Name, m.Name))
		}
	}
	for _, m := range predecessors {
		if _, err := srv.RemoveMember(ctx, m.ID); err != nil {
			return fail(fmt.Errorf("remove its predecessor: %w", err))
		}
	}
	u := peerURL(peer)
	urls, err := types.NewURLs([]string{u.String()})
	if err != nil {
		return fail(err)
	}
	now := time.Now()
	all, err := srv.AddMember(ctx, *membership.NewMemberAsLearner("", urls, "", &now))
	if errors.Is(err, membership.ErrTooManyLearners) {
		var waiting []string
		for _, m := range s.Members() {
			if m.Learner {
				waiting = append(waiting, m.Peer)
			}
		}
		return fail(fmt.Errorf("servers at %s joined and are not full members yet; those that do not start are "+
			"taken out after %s, or at once by `umiak server forget ADDRESS` on a server", strings.Join(waiting, ", "),
			startTimeout))
	}
	if err != nil {
		return fail(err)
	}
	return members(all, uint64(srv.Leader()), uint64(srv.MemberID())), nil
}

// ErrHealthy means that a member answers and must not be forgotten.
var ErrHealthy = errors.New("it is a member that answers")

// forgetTimeout bounds the wait for the other members to agree, one of which may have been lost too.
const forgetTimeout = 10 * time.Second

// Forget removes a member that is lost or has never started and returns it. which is its name, its address, or the host
// of its address. A member that answers is not removed, nor one without which the others would have no majority.
func (s *Server) Forget(ctx context.Context, which string) (Member, error) {
	fail := func(err error) (Member, error) { return Member{}, fmt.Errorf("forget member %s: %w", which, err) }
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	all := s.Members()
	i := slices.IndexFunc(all, func(m Member) bool {
		host, _, _ := net.SplitHostPort(m.Peer)
		return which != "" && (m.Name == which || m.Peer == which || host == which)
	})
	if i < 0 {
		return fail(ErrNoMember)
	}
	m := all[i]
	if m.Self || !m.Unreachable {
		return fail(ErrHealthy)
	}
	if s.etcd.Server.Leader() == 0 {
		return fail(errors.New("without a majority nobody can be taken out: " + Remedy(all)))
	}
	voters, answer := 0, 0
	for _, o := range all {
		if o.Learner || o.ID == m.ID {
			continue
		}
		voters++
		if !o.Unreachable {
			answer++
		}
	}
	if !m.Learner && answer < voters/2+1 {
		return fail(fmt.Errorf("of the %d others only %d answer, which would be no majority without it", voters,
			answer))
	}
	if _, err := s.etcd.Server.RemoveMember(ctx, m.ID); err != nil && !errors.Is(err, membership.ErrIDRemoved) &&
		!errors.Is(err, membership.ErrIDNotFound) {
		return fail(err)
	}
	return m, nil
}

// missingVoters returns the voting members that do not answer, the number of voting members, and how many are needed.
func missingVoters(all []Member) (missing []Member, voters, needed int) {
	for _, m := range all {
		if m.Learner {
			continue
		}
		voters++
		if m.Unreachable {
			missing = append(missing, m)
		}
	}
	return missing, voters, voters/2 + 1
}

// Remedy returns a text for a person: which members are missing, at which addresses, and what to do.
func Remedy(all []Member) string {
	missing, voters, needed := missingVoters(all)
	var list []string
	var moved []string
	for _, m := range missing {
		list = append(list, fmt.Sprintf("%s at %s", m.Name, m.Peer))
		moved = append(moved, m.Name+"=ADDRESS")
	}
	if len(list) == 0 {
		return fmt.Sprintf("all %d members answer, a leader is being elected", voters)
	}
	return fmt.Sprintf("%d of %d servers answer and %d are needed; missing: %s. Start these servers, or mend the "+
		"network to them (2380/tcp). "+
		"If they have other addresses now: `umiak server moved %s` on this one. If they are lost for good: start "+
		"one server once with --cluster-reset",
		voters-len(missing), voters, needed, strings.Join(list, ", "), strings.Join(moved, " "))
}

// RemoveMember removes a server from the cluster. A server that is not a member is no error.
func (s *Server) RemoveMember(ctx context.Context, name string) error {
	m, err := s.member(name)
	if errors.Is(err, ErrNoMember) {
		return nil
	}
	if err == nil {
		_, err = s.etcd.Server.RemoveMember(ctx, m.ID)
	}
	if errors.Is(err, membership.ErrIDRemoved) || errors.Is(err, membership.ErrIDNotFound) {
		return nil // another server has removed it
	}
	if err != nil {
		return fmt.Errorf("remove member %s: %w", name, err)
	}
	return nil
}

// member returns the member with a name, or ErrNoMember.
func (s *Server) member(name string) (Member, error) {
	for _, m := range s.Members() {
		if m.Name == name && name != "" {
			return m, nil
		}
	}
	return Member{}, ErrNoMember
}

// Status returns the current state.
func (s *Server) Status() Status {
	srv := s.etcd.Server
	b := srv.Backend()
	out := Status{Revision: s.Revision(), FileBytes: b.Size(), InUseBytes: b.SizeInUse(), Learner: srv.IsLearner(),
		HasLeader: srv.Leader() != 0, Members: s.Members()}
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
