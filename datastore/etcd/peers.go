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

// Members know each other by the addresses that the cluster has agreed on, and without a majority it can agree on no
// other: when all of them have moved, none finds any other. While there is no leader, seek lets etcd's transport try
// more addresses for members that do not answer: those that Moved was told, and those that a member's name resolves
// to. One that answers must prove with its certificate that it is of the cluster, and etcd checks that it is the
// member it is taken for, so a wrong guess does no harm. As soon as there is a leader, the cluster is told where
// members were found; each also tells its address itself (updateAddress).

const (
	seekEvery   = 2 * time.Second // a look at what is in memory
	lookupEvery = 10 * time.Second
	lookupLimit = 2 * time.Second
	// addressTimeout is how long the cluster may take to agree on an address.
	addressTimeout = 5 * time.Second
)

// transportOf returns etcd's connections to the other members, which it does not export. It has no other way to
// change where a member is tried.
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

// reachable reports whether a connection with a member stands.
func (s *Server) reachable(id uint64) bool {
	return s.transport == nil || !s.transport.ActiveSince(types.ID(id)).IsZero()
}

// Moved has a member tried at another address too, HOST:PORT, from now on until there is a leader.
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
		return fmt.Errorf("move member %s to %s: it is this server, which tells the others its address itself", name, address)
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

// seeking is what seek knows from turn to turn, by member.
type seeking struct {
	trying   map[uint64]string    // the address that the transport was given last
	since    map[uint64]int       // turns for which it has had it
	found    map[uint64][]string  // what names resolved to
	answers  map[uint64]time.Time // since when it has been seen to answer there
	lookedUp time.Time
}

// believes reports whether a member that answers now has done so since a look before: a connection to its former address may
// be noticed as dead only after another one was tried.
func (k *seeking) believes(id uint64, now time.Time) bool {
	first, ok := k.answers[id]
	if !ok {
		k.answers[id] = now
	}
	return ok && now.Sub(first) >= seekEvery
}

// turnsEach is for how many turns an address is tried.
const turnsEach = 2

// seek runs until ctx ends.
func (s *Server) seek(ctx context.Context) {
	tick := time.NewTicker(seekEvery)
	defer tick.Stop()
	k := &seeking{trying: map[uint64]string{}, since: map[uint64]int{}, found: map[uint64][]string{}, answers: map[uint64]time.Time{}}
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

// tryMore has the transport try the addresses of members that do not answer one after the other, where there are more
// than the cluster knows. When one answers, the cluster is told: whoever leads may not know that address.
func (s *Server) tryMore(ctx context.Context, k *seeking) {
	all := s.Members()
	led := s.etcd.Server.Leader() != 0
	if !led && time.Since(k.lookedUp) > lookupEvery {
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
		case led && k.believes(m.ID, time.Now()):
			if err := s.setAddress(ctx, m.ID, at); err != nil {
				s.cfg.Log.Debug("cannot tell the cluster another member's address yet", "member", m.Name, "address", at, "error", err)
				continue
			}
			s.cfg.Log.Info("a member was found at another address, the cluster knows it now", "member", m.Name, "address", at)
			s.forgetMoved(k, m.ID)
		}
	}
}

// tryNext gives the transport the next address of a member.
func (s *Server) tryNext(k *seeking, m Member, all []Member) {
	addresses := []string{m.Peer}
	s.mu.Lock()
	if a := s.moved[m.ID]; a != "" {
		addresses = append(addresses, a)
	}
	s.mu.Unlock()
	for _, a := range k.found[m.ID] {
		held := slices.ContainsFunc(all, func(o Member) bool { return o.Peer == a }) // as far as the cluster knows
		if !held && !slices.Contains(addresses, a) && a != s.cfg.Peer {
			addresses = append(addresses, a)
		}
	}
	if len(addresses) == 1 && k.trying[m.ID] == "" {
		return
	}
	if k.since[m.ID]++; k.trying[m.ID] != "" && k.since[m.ID] <= turnsEach {
		return
	}
	next := addresses[(slices.Index(addresses, k.trying[m.ID])+1)%len(addresses)]
	if k.trying[m.ID] == "" {
		s.cfg.Log.Info("a member does not answer, it is tried at other addresses too", "member", m.Name, "addresses", addresses)
		next = addresses[1]
	}
	k.trying[m.ID], k.since[m.ID] = next, 0
	s.transport.UpdatePeer(types.ID(m.ID), peerURLs([]string{next}))
}

func (s *Server) forgetMoved(k *seeking, id uint64) {
	delete(k.trying, id)
	delete(k.since, id)
	delete(k.found, id)
	delete(k.answers, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.moved, id)
}

// setAddress has the cluster know a member at an address.
func (s *Server) setAddress(ctx context.Context, id uint64, address string) error {
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	_, err := s.etcd.Server.UpdateMember(ctx, membership.Member{ID: types.ID(id), RaftAttributes: membership.RaftAttributes{PeerURLs: peerURLs([]string{address})}})
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

// resolve looks a member's name up.
func resolve(ctx context.Context, m Member) []string {
	_, port, err := net.SplitHostPort(m.Peer)
	if err != nil || m.Name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", m.Name)
	if err != nil {
		return nil // most networks do not know their machines by name
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
