package etcd

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/umiak-io/umiak/internal/retry"
)

// A server that was added and never starts stays in the member list as a learner without a name, and with three of
// those (etcd's MaxLearners) no other server can join. The leader removes one that has not started within
// startTimeout; the server can join again later.
const (
	startTimeout  = 5 * time.Minute
	staleInterval = 30 * time.Second // between two looks at the member list, which is in memory
)

// removeStale removes learners that never start, until ctx ends.
func (s *Server) removeStale(ctx context.Context) {
	first := map[uint64]time.Time{}
	for retry.Sleep(ctx, staleInterval) == nil {
		s.removeStaleAt(ctx, first, time.Now())
	}
}

// removeStaleAt removes the learners that have had no name for startTimeout. first has the time at which each was first
// seen, by member ID.
func (s *Server) removeStaleAt(ctx context.Context, first map[uint64]time.Time, now time.Time) {
	srv := s.etcd.Server
	there := map[uint64]bool{}
	for _, m := range s.Members() {
		if m.Name != "" || !m.Learner || m.Self {
			continue
		}
		there[m.ID] = true
		if first[m.ID].IsZero() {
			first[m.ID] = now
		}
		if now.Sub(first[m.ID]) < startTimeout || srv.Leader() != srv.MemberID() {
			continue
		}
		if _, err := srv.RemoveMember(ctx, m.ID); err != nil {
			s.cfg.Log.Warn("cannot remove a server that joined and never started, trying again", "peer", m.Peer,
				"error", err)
			continue
		}
		s.cfg.Log.Warn("a server joined and never started, removed it from the cluster", "peer", m.Peer, "waited",
			now.Sub(first[m.ID]).Round(time.Second))
	}
	for id := range first {
		if !there[id] {
			delete(first, id)
		}
	}
}

// joiningMark is the file in the directory of a member that was added as a learner and is not promoted yet.
const joiningMark = "joining"

// Joining reports whether a directory holds a member that was added as a learner and was never promoted. Its data is a
// copy of the other members' data.
func Joining(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, joiningMark))
	return err == nil
}
