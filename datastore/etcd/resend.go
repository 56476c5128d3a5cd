package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// resender sends writes again that were lost with a leader.
//
// A member forwards a write to the leader in one message that etcd does not repeat. If the leader dies with it, the
// client waits for etcd's request timeout, 7 seconds with our election time, and gets an error that leaves open whether
// the write happened. resender finds out: once there is a new leader and this member has completed a linearizable read,
// every write that the old leader committed is applied here; a write that is not has not happened and is sent again. A
// message that was only delayed and reaches the new leader later does no harm: the writes of kube-apiserver compare the
// revision of their key.
type resender struct {
	member  func(context.Context) (member, error) // waits until etcd has started
	timeout time.Duration                         // bounds the waiting for a leader, and sending more than once again
}

// member is the part of etcd's server that resender uses.
type member interface {
	// LeaderChanged returns a channel that is closed when the leader changes, or when there is one again.
	LeaderChanged() <-chan struct{}
	// FirstCommitInTermNotify returns a channel that is closed when this member has applied the first entry of a
	// term. It also fires when a leader was killed and elected again within a second, which LeaderChanged of the
	// other members may not notice.
	FirstCommitInTermNotify() <-chan struct{}
	// LinearizableReadNotify returns when every entry that is committed at the time of the call is applied. It may fail
	// just because the leader changes.
	LinearizableReadNotify(ctx context.Context) error
}

// answerGrace bounds the time from an applied write to its answer within the process. It is also the pause between two
// attempts of a read.
const answerGrace = 100 * time.Millisecond

// sameLeaderWait is how long a write waits after the start of a term whose leader may be the old one, before it counts
// as lost: a write that was sent between the election and the first entry of the term is only slow.
const sameLeaderWait = election * time.Millisecond

var errResend = errors.New("the leader has changed")

// unary is a grpc.UnaryServerInterceptor for the member's own listener.
func (r resender) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any,
	error) {
	switch info.FullMethod {
	case etcdserverpb.KV_Txn_FullMethodName, etcdserverpb.Lease_LeaseGrant_FullMethodName:
	default: // clients repeat reads, and people repeat the other calls
		return handler(ctx, req)
	}
	m, err := r.member(ctx)
	if err != nil {
		return nil, err
	}
	limit := time.NewTimer(r.timeout)
	defer limit.Stop()
	for sent := 1; ; sent++ {
		changed, term := m.LeaderChanged(), m.FirstCommitInTermNotify()
		resp, err := r.attempt(ctx, m, changed, term, req, handler)
		switch {
		case err == nil:
			return resp, nil
		case errors.Is(err, errResend): // the write was lost
			if sent == 1 {
				continue
			}
			select {
			case <-limit.C: // it was lost with one leader after another
				return nil, rpctypes.ErrGRPCTimeoutDueToLeaderFail
			default:
			}
		case status.Convert(err).Message() == raft.ErrProposalDropped.Error(): // there was no leader
			select {
			case <-changed:
			case <-term:
			case <-limit.C:
				return nil, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		default:
			return nil, err
		}
	}
}

// attempt makes the write once. It returns errResend if the write was lost in a change of leaders.
func (r resender) attempt(ctx context.Context, m member, changed, term <-chan struct{}, req any,
	handler grpc.UnaryHandler) (any, error) {
	type result struct {
		resp any
		err  error
	}
	once, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting, answered := context.WithCancel(ctx)
	done := make(chan result, 1)
	go func() {
		defer answered()
		resp, err := handler(once, req)
		done <- result{resp, err}
	}()
	select {
	case out := <-done:
		return out.resp, out.err
	case <-changed:
	case <-term:
		select {
		case out := <-done:
			return out.resp, out.err
		case <-changed:
		case <-time.After(sameLeaderWait):
		}
	}
	for {
		// A read that reaches etcd's loop together with the election fails, with the notice that we have had already.
		err := m.LinearizableReadNotify(waiting)
		select {
		case out := <-done:
			return out.resp, out.err
		case <-time.After(answerGrace):
		}
		if err == nil {
			break
		}
	}
	cancel()
	if out := <-done; out.err == nil {
		return out.resp, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("wait for a write: %w", ctx.Err())
	}
	return nil, errResend
}
