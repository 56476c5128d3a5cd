package etcd

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

const (
	// lostTurns is for how many turns of seek a member has to be lost before it is asked whether it is.
	lostTurns = 3
	// askEvery is after how many more turns it is asked again.
	askEvery = 15
	// askLimit is how long it gets to answer.
	askLimit = time.Second
)

// info is how etcd is told of the files.
func (t TLS) info() transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: t.ServerCert, KeyFile: t.ServerKey, ClientCertFile: t.ClientCert, ClientKeyFile: t.ClientKey,
		TrustedCAFile: t.CA, ClientCertAuth: true, ServerName: PeerName,
	}
}

// reconnect makes the connections with a member anew that answers although etcd's transport holds it for lost: a message
// to an address that the member has left may fail long after the connections to the new one stand, and nothing would take
// that back. A member of which etcd believes so may be removed, and others may not. lost counts turns, by member.
func (s *Server) reconnect(ctx context.Context, lost map[uint64]int) {
	if s.transport == nil {
		return
	}
	for _, m := range s.Members() {
		switch {
		case m.Self || m.Name == "":
			continue
		case !m.Unreachable:
			delete(lost, m.ID)
			continue
		}
		if lost[m.ID]++; lost[m.ID] < lostTurns || (lost[m.ID]-lostTurns)%askEvery != 0 || !s.answers(ctx, m.Peer) {
			continue
		}
		s.cfg.Log.Info("a member that was held for lost answers, the connections with it are made anew", "member", m.Name, "address", m.Peer)
		id := types.ID(m.ID)
		s.transport.RemovePeer(id)
		s.transport.AddPeer(id, peerURLs([]string{m.Peer}))
		if s.etcd.Server.Cluster().Member(id) == nil { // it was taken out meanwhile
			s.transport.RemovePeer(id)
		}
	}
}

// answers reports whether a member of this cluster, whichever, answers at an address.
func (s *Server) answers(ctx context.Context, address string) bool {
	cfg, err := s.cfg.TLS.info().ClientConfig()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close() // it has answered
	return true
}
