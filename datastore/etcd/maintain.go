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
	// maintainEvery is how often it is looked whether the file should shrink.
	maintainEvery = time.Hour
	// It is written anew when more than defragMin and half of it are free: below that it costs flash more
	// writes than it saves room.
	defragMin = 64 << 20
)

// maintain shrinks the file when that pays, until ctx ends. Members do it at moments of their own, so that
// rarely two are busy with it.
func (s *Server) maintain(ctx context.Context) {
	offset := time.Duration(rand.Int64N(int64(maintainEvery)))
	for retry.Sleep(ctx, offset) == nil {
		offset = maintainEvery
		err := s.defragIfPays(ctx)
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("cannot give room back to the disk, trying again in an hour", "err", err)
		}
		s.mu.Lock()
		s.defragErr = err
		s.mu.Unlock()
	}
}

func (s *Server) voters() (n int) {
	for _, m := range s.Members() {
		if !m.Learner {
			n++
		}
	}
	return n
}

func pays(size, inUse int64) bool { free := size - inUse; return free > defragMin && free > size/2 }

func (s *Server) defragIfPays(ctx context.Context) error {
	srv := s.etcd.Server
	b := srv.Backend()
	if size := b.Size(); pays(size, b.SizeInUse()) {
		// A leader that is busy for a second or two would be taken for lost.
		if srv.Leader() == srv.MemberID() && s.voters() > 1 {
			if err := srv.TryTransferLeadershipOnShutdown(); err != nil {
				return err
			}
		}
		begun := time.Now()
		if err := b.Defrag(); err != nil {
			return err
		}
		s.cfg.Log.Info("gave room back to the disk", "bytes", size-b.Size(), "file", b.Size(), "took", time.Since(begun).Round(time.Millisecond))
	}
	// The alarm of a full file stays until somebody takes it back.
	if b.Size() > s.etcd.Config().QuotaBackendBytes*8/10 {
		return nil
	}
	var errs []error
	for _, a := range srv.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE && a.MemberID == uint64(srv.MemberID()) {
			_, err := srv.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
