package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"time"
	"unsafe"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
)

// How members find each other after their addresses have changed.
//
// Members connect to the addresses in the cluster's member list. Without a majority the list cannot change, so if all
// members have new addresses, none finds another one. While there is no leader, seek makes etcd's transport try more
// addresses for members that do not answer: those given to Moved, and those to which the member's name resolves. The
// machine that answers must have a certificate of the cluster, and etcd checks that it is the expected member, so a
// wrong guess does no harm. Once there is a leader, the addresses that were found are written into the member list;
// each member also publishes its own (updateAddress).

const (
	seekInterval   = 2 * time.Second // between two turns; a turn only reads memory if all members answer
	lookupInterval = 10 * time.Second
	lookupTimeout  = 2 * time.Second
	addressTimeout = 5 * time.Second // for a change of the member list
)

// transportOf returns the connections of an etcd server to the other members. The field is not exported, and there is
// no other way to change the address at which a member is tried.
func transportOf(s *etcdserver.EtcdServer) (rafthttp.Transporter, error) {
	v := reflect.ValueOf(s).Elem().FieldByName("r")
	if v.IsValid() && v.Kind() == reflect.Struct {
		v = v.FieldByName("transport")
	}
	if !v.IsValid() || v.Type() != reflect.TypeFor[rafthttp.Transporter]() {
		return nil, errors.New("etcd's transport is not where it was in v3.7")
	}
	return *(*rafthttp.Transporter)(unsafe.Pointer(v.UnsafeAddr())), nil
}

// reachable reports whether there is a connection with a member.
func (s *Server) reachable(id uint64) bool {
	return s.transport == nil || !s.transport.ActiveSince(types.ID(id)).IsZero()
}

// Moved adds an address, HOST:PORT, at which a member is tried until it is found.
func (s *Server) Moved(name, address string) error {
	m, err := s.member(name)
	if err != nil {
		return fmt.Errorf("move member %s to %s: %w", name, address, err)
	}
	for _, o := range s.Members() {
		if o.ID != m.ID && o.Peer == address {
			return fmt.Errorf("move member %s to %s: %w: member %s", name, address, ErrTaken, o.Name)
		}
	}
	if m.Self {
		return fmt.Errorf("move member %s to %s: it is this server, which publishes its own address", name, address)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moved == nil {
		s.moved = map[uint64]string{}
	}
	s.moved[m.ID] = address
	select {
	case s.seekNow <- struct{}{}:
	default:
	}
	return nil
}

// seekState is the state of seek between turns. Its maps are keyed by member ID.
type seekState struct {
	trying   map[uint64]string    // address that the transport tries
	since    map[uint64]int       // turns for which it has tried it
	found    map[uint64][]string  // addresses to which the member's name resolved
	answers  map[uint64]time.Time // since when the member has answered at the address that is tried
	lookedUp time.Time            // last lookup of names
}

// confirmed reports whether a member that answers now also answered at a turn before. Once is not enough: a dead
// connection to its former address may be noticed only after another address was tried.
func (k *seekState) confirmed(id uint64, now time.Time) bool {
	first, ok := k.answers[id]
	if !ok {
		k.answers[id] = now
	}
	return ok && now.Sub(first) >= seekInterval
}

// turnsPerAddress is the number of turns for which an address is tried.
const turnsPerAddress = 2

// seek watches the leader and the other members and looks for members that do not answer, until ctx ends.
func (s *Server) seek(ctx context.Context) {
	tick := time.NewTicker(seekInterval)
	defer tick.Stop()
	k := &seekState{trying: map[uint64]string{}, since: map[uint64]int{}, found: map[uint64][]string{},
		answers: map[uint64]time.Time{}}
	seen, leader, lost := map[uint64]*peerState{}, &leaderState{}, map[uint64]int{}
	for {
		s.watchLeader(leader, time.Now())
		s.watchPeers(seen)
		s.reconnect(ctx, lost)
		s.tryMore(ctx, k)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.seekNow:
		}
	}
}

// tryMore makes the transport try the addresses of members that do not answer in turn, if there are more than the one
// in the member list. The address at which one answers is written into the list, since the leader may not have it.
func (s *Server) tryMore(ctx context.Context, k *seekState) {
	all := s.Members()
	led := s.etcd.Server.Leader() != 0
	if !led && time.Since(k.lookedUp) > lookupInterval {
		k.lookedUp = time.Now()
		for _, m := range all {
			if !m.Self && m.Unreachable {
				k.found[m.ID] = resolve(ctx, m)
			}
		}
	}
	for _, m := range all {
		at := k.trying[m.ID]
		switch {
		case m.Self, at == "" && !m.Unreachable:
		case m.Unreachable:
			delete(k.answers, m.ID)
			s.tryNext(k, m, all)
		case at == m.Peer:
			s.forgetMoved(k, m.ID)
		case led && k.confirmed(m.ID, time.Now()):
			if err := s.setAddress(ctx, m.ID, at); err != nil {
				s.cfg.Log.Debug("cannot publish another member's address in the cluster yet", "member", m.Name,
					"address", at, "error", err)
				continue
			}
			s.cfg.Log.Info("found a member at another address and published it in the cluster", "member", m.Name,
				"address", at)
			s.forgetMoved(k, m.ID)
		}
	}
}

// tryNext gives the transport the next address of a member.
func (s *Server) tryNext(k *seekState, m Member, all []Member) {
	addresses := []string{m.Peer}
	s.mu.Lock()
	if a := s.moved[m.ID]; a != "" {
		addresses = append(addresses, a)
	}
	s.mu.Unlock()
	for _, a := range k.found[m.ID] {
		held := slices.ContainsFunc(all, func(o Member) bool { return o.Peer == a }) // according to the member list
		if !held && !slices.Contains(addresses, a) && a != s.cfg.Peer {
			addresses = append(addresses, a)
		}
	}
	if len(addresses) == 1 && k.trying[m.ID] == "" {
		return
	}
	if k.since[m.ID]++; k.trying[m.ID] != "" && k.since[m.ID] <= turnsPerAddress {
		return
	}
	next := addresses[(slices.Index(addresses, k.trying[m.ID])+1)%len(addresses)]
	if k.trying[m.ID] == "" {
		s.cfg.Log.Info("a member does not answer, trying other addresses too", "member", m.Name, "addresses", addresses)
		next = addresses[1]
	}
	k.trying[m.ID], k.since[m.ID] = next, 0
	s.transport.UpdatePeer(types.ID(m.ID), peerURLs([]string{next}))
}

// forgetMoved ends the search for a member.
func (s *Server) forgetMoved(k *seekState, id uint64) {
	delete(k.trying, id)
	delete(k.since, id)
	delete(k.found, id)
	delete(k.answers, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.moved, id)
}

// setAddress writes the address of a member into the cluster's member list.
func (s *Server) setAddress(ctx context.Context, id uint64, address string) error {
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	_, err := s.etcd.Server.UpdateMember(ctx, membership.Member{ID: types.ID(id),
		RaftAttributes: membership.RaftAttributes{PeerURLs: peerURLs([]string{address})}})
	return err
}

func peerURLs(addresses []string) []string {
	var out []string
	for _, a := range addresses {
		u := peerURL(a)
		out = append(out, u.String())
	}
	return out
}

// resolve returns the addresses to which a member's name resolves, with the port of its present address.
func resolve(ctx context.Context, m Member) []string {
	_, port, err := net.SplitHostPort(m.Peer)
	if err != nil || m.Name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", m.Name)
	if err != nil {
		return nil // most networks have no names for their machines
	}
	var out []string
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.IsValid() && !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsMulticast() {
			out = append(out, net.JoinHostPort(ip.String(), port))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
