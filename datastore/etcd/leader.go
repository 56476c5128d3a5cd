package etcd

import "time"

// settleTime is the time after an election during which clients still report errors from the time without a leader.
const settleTime = 5 * time.Second

// leaderState is the state of watchLeader between turns.
type leaderState struct {
	lost  bool      // there was no leader at the last turn
	since time.Time // when the loss was logged; zero while there is a leader
	back  time.Time // when the return was logged; zero once settleTime is over
}

// watchLeader logs once when the cluster has no leader and once when it has one again. etcd reports new leaders only,
// so each turn looks; a single turn without a leader is an election.
func (s *Server) watchLeader(l *leaderState, now time.Time) {
	lost := s.etcd.Server.Leader() == 0
	switch {
	case lost && l.lost && l.since.IsZero():
		l.since, l.back = now, time.Time{}
		s.cfg.Log.Error("the cluster has no leader, nothing can be written; `umiak status` says more", "what",
			Remedy(s.Members()))
		s.failing(true)
	case !lost && !l.since.IsZero():
		s.cfg.Log.Info("the cluster has a leader again", "after", now.Sub(l.since).Round(time.Second))
		l.since, l.back = time.Time{}, now
	case !lost && !l.back.IsZero() && now.Sub(l.back) > settleTime:
		l.back = time.Time{}
		s.failing(false)
	}
	l.lost = lost
}

// failing sets whether etcd's log is quiet, since its errors add nothing while there is no leader, and calls
// cfg.Failing.
func (s *Server) failing(on bool) {
	s.quiet.Store(on)
	if s.cfg.Failing != nil {
		s.cfg.Failing(on)
	}
}

// watchPeers logs when a member stops answering and when it answers again, after two turns in a row have seen it.
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
		if m.Unreachable == p.last && m.Unreachable != p.logged {
			p.logged = m.Unreachable
			if m.Unreachable {
				s.cfg.Log.Warn("a server does not answer", "server", m.Name, "address", m.Peer)
			} else {
				s.cfg.Log.Info("a server answers again", "server", m.Name, "address", m.Peer)
			}
		}
		p.last = m.Unreachable
	}
}

// peerState is whether a member was unreachable at the last turn, and whether that was the last thing logged.
type peerState struct{ last, logged bool }
