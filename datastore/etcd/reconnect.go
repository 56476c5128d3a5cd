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
	lostTurns    = 3           // turns of seek for which a member is unreachable before it is probed
	probeTurns   = 15          // turns between two probes
	probeTimeout = time.Second // for the answer to a probe
)

// info returns the files in the form in which etcd takes them.
func (t TLS) info() transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: t.ServerCert, KeyFile: t.ServerKey, ClientCertFile: t.ClientCert, ClientKeyFile: t.ClientKey,
		TrustedCAFile: t.CA, ClientCertAuth: true, ServerName: PeerName,
	}
}

// reconnect replaces the connections with members that etcd's transport takes for lost although they answer: a message
// to a former address may fail long after the connections to the new one are up, and etcd would never correct that. It
// matters because a lost member can be removed, and counts as missing in a majority. lost counts turns, by member ID.
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
		if lost[m.ID]++; lost[m.ID] < lostTurns || (lost[m.ID]-lostTurns)%probeTurns != 0 || !s.answers(ctx, m.Peer) {
			continue
		}
		s.cfg.Log.Info("a member taken for lost answers, connecting to it again", "member", m.Name, "address", m.Peer)
		id := types.ID(m.ID)
		s.transport.RemovePeer(id)
		s.transport.AddPeer(id, peerURLs([]string{m.Peer}))
		if s.etcd.Server.Cluster().Member(id) == nil { // removed meanwhile
			s.transport.RemovePeer(id)
		}
	}
}

// answers reports whether any member of this cluster answers at an address.
func (s *Server) answers(ctx context.Context, address string) bool {
	cfg, err := s.cfg.TLS.info().ClientConfig()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close() // the handshake was the answer
	return true
}
