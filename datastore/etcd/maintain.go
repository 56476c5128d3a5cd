package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/umiak-io/umiak/internal/retry"
)

const (
	// maintainInterval is the interval at which the size of the database file is looked at.
	maintainInterval = time.Hour
	// defragMin is the number of free bytes above which, if they are also half of the file, the file is rewritten.
	// Below that, the rewrite costs more flash wear than the space is worth.
	defragMin = 64 << 20
)

// maintain defragments the database file when it is useful, until ctx ends. The first time is random, so that two
// members are rarely busy with it at once.
func (s *Server) maintain(ctx context.Context) {
	offset := time.Duration(rand.Int64N(int64(maintainInterval)))
	for retry.Sleep(ctx, offset) == nil {
		offset = maintainInterval
		err := s.defragIfUseful(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("cannot return free space to the file system, trying again in an hour", "error", err)
		}
		s.mu.Lock()
		s.defragErr = err
		s.mu.Unlock()
	}
}

// voters returns the number of voting members.
func (s *Server) voters() (n int) {
	for _, m := range s.Members() {
		if !m.Learner {
			n++
		}
	}
	return n
}

// worthDefrag reports whether a file of size bytes should be rewritten.
func worthDefrag(size, inUse int64) bool {
	free := size - inUse
	return free > defragMin && free > size/2
}

// defragIfUseful defragments the file if worthDefrag says so, and clears the alarm of a full file that has space again.
func (s *Server) defragIfUseful(ctx context.Context) error {
	srv := s.etcd.Server
	b := srv.Backend()
	if size := b.Size(); worthDefrag(size, b.SizeInUse()) {
		// The file is locked for a second or two: the other members would take a leader for lost.
		if srv.Leader() == srv.MemberID() && s.voters() > 1 {
			if err := srv.TryTransferLeadershipOnShutdown(); err != nil {
				return err
			}
		}
		begun := time.Now()
		if err := b.Defrag(); err != nil {
			return err
		}
		s.cfg.Log.Info("returned free space to the file system", "bytes", size-b.Size(), "file", b.Size(), "took",
			time.Since(begun).Round(time.Millisecond))
	}
	// etcd never clears the alarm of a full file on its own.
	if b.Size() > s.etcd.Config().QuotaBackendBytes*8/10 {
		return nil
	}
	var errs []error
	for _, a := range srv.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE && a.MemberID == uint64(srv.MemberID()) {
			_, err := srv.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_DEACTIVATE,
				MemberID: a.MemberID, Alarm: a.Alarm})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
