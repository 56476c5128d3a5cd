package etcd

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/umiak-io/umiak/internal/retry"
)

// A machine that is taken in and never starts stays a learner without a name, and three of those keep everybody else
// out. Whoever leads removes one that has not started for startLimit: its machine is taken in anew when it asks again.
const (
	startLimit = 5 * time.Minute
	staleEvery = 30 * time.Second // a look at a list in memory
)

// removeStale runs until ctx ends.
func (s *Server) removeStale(ctx context.Context) {
	first := map[uint64]time.Time{}
	for retry.Sleep(ctx, staleEvery) == nil {
		s.removeStaleAt(ctx, first, time.Now())
	}
}

// removeStaleAt removes the learners that were seen without a name for longer than startLimit. first is when each was
// seen first.
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
		if now.Sub(first[m.ID]) < startLimit || srv.Leader() != srv.MemberID() {
			continue
		}
		if _, err := srv.RemoveMember(ctx, m.ID); err != nil {
			s.cfg.Log.Warn("cannot remove a server that joined and never started, trying again", "peer", m.Peer, "error", err)
			continue
		}
		s.cfg.Log.Warn("a server joined and never started, it is no member any more", "peer", m.Peer, "waited", now.Sub(first[m.ID]).Round(time.Second))
	}
	for id := range first {
		if !there[id] {
			delete(first, id)
		}
	}
}

// joiningMark is in the folder of a member that has joined and has not been a full member yet.
const joiningMark = "joining"

// Joining reports whether a directory holds a member that was taken in and has never become a full one. What it holds
// is a copy of what the others have.
func Joining(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, joiningMark))
	return err == nil
}
