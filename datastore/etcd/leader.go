package etcd

import "time"

// settling is how long clients go on reporting what they waited for after there is a leader again.
const settling = 5 * time.Second

// leaderState is what is known of the cluster's leader from turn to turn.
type leaderState struct {
	lost  bool      // there was none at the last turn
	since time.Time // when it was logged that there is none; zero while there is one
	back  time.Time // when it was logged that there is one again, until that has settled
}

// watchLeader logs, once each time, that there is no leader and that there is one again. etcd tells of new leaders only,
// so this looks at each turn; one turn without a leader is an election.
func (s *Server) watchLeader(l *leaderState, now time.Time) {
	lost := s.etcd.Server.Leader() == 0
	switch {
	case lost && l.lost && l.since.IsZero():
		l.since, l.back = now, time.Time{}
		s.cfg.Log.Error("the cluster has no leader, nothing can be written; `umiak status` says more", "what", Remedy(s.Members()))
		s.failing(true)
	case !lost && !l.since.IsZero():
		s.cfg.Log.Info("the cluster has a leader again", "after", now.Sub(l.since).Round(time.Second))
		l.since, l.back = time.Time{}, now
	case !lost && !l.back.IsZero() && now.Sub(l.back) > settling:
		l.back = time.Time{}
		s.failing(false)
	}
	l.lost = lost
}

// failing hushes etcd's own complaints, which say nothing new while there is no leader, and whoever else wants to know.
func (s *Server) failing(on bool) {
	s.hushed.Store(on)
	if s.cfg.Failing != nil {
		s.cfg.Failing(on)
	}
}

// watchPeers logs that a member does not answer and that it does again. Each is what two turns in a row have seen.
func (s *Server) watchPeers(seen map[uint64]*peerState) {
	for _, m := range s.Members() {
		if m.Self || m.Name == "" {
			continue
		}
		p := seen[m.ID]
		if p == nil {
			p = &peerState{}
			seen[m.ID] = p
		}
		if m.Unreachable == p.last && m.Unreachable != p.told {
			p.told = m.Unreachable
			if m.Unreachable {
				s.cfg.Log.Warn("a server does not answer", "server", m.Name, "address", m.Peer)
			} else {
				s.cfg.Log.Info("a server answers again", "server", m.Name, "address", m.Peer)
			}
		}
		p.last = m.Unreachable
	}
}

// peerState is whether a member did not answer at the last turn, and according to the log.
type peerState struct{ last, told bool }
