package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// A write goes to the leader as a message that nobody repeats: when the leader dies with it, whoever asked waits for
// etcd's request timeout, 7 seconds with our elections, and is told that nobody knows what became of it. resender
// finds out and sends it again. Once a new leader is there and this member has answered a linearizable read, all that
// the old leader had committed is applied here, and what is not has not happened. A message that was only delayed and
// comes to the new leader after all does no harm: kube-apiserver's writes compare the revision of their key.
type resender struct {
	member  func(context.Context) (member, error) // waits until there is one
	timeout time.Duration                         // how long a write is tried at all
}

// member is what resender needs of etcd.
type member interface {
	// LeaderChanged is closed when there is another leader, or one again.
	LeaderChanged() <-chan struct{}
	// FirstCommitInTermNotify's channel is closed when this member has applied the first entry of a term. A leader that was
	// killed and is elected again within a second may be no change to the other members; this is.
	FirstCommitInTermNotify() <-chan struct{}
	// LinearizableReadNotify returns when everything that is committed at the time of the call is applied. While leaders
	// change it may fail with what says no more than that.
	LinearizableReadNotify(ctx context.Context) error
}

// grace is how long the answer to a write that was applied may take to come back within the process, and the pause
// before a read is tried again.
const grace = 100 * time.Millisecond

// patience is how long a write must have been waiting since a term began under what may be the same leader: if it was sent
// in the moment between the election and that term's first entry, it was not lost, and is only slow.
const patience = election * time.Millisecond

var errResend = errors.New("the leader has changed")

// unary is a grpc.UnaryServerInterceptor for the member's own listener.
func (r resender) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	switch info.FullMethod {
	case etcdserverpb.KV_Txn_FullMethodName, etcdserverpb.Lease_LeaseGrant_FullMethodName:
	default: // reads repeat themselves; the others are for people, who do
		return handler(ctx, req)
	}
	m, err := r.member(ctx)
	if err != nil {
		return nil, err
	}
	limit := time.NewTimer(r.timeout)
	defer limit.Stop()
	for {
		changed, term := m.LeaderChanged(), m.FirstCommitInTermNotify()
		resp, err := r.attempt(ctx, m, changed, term, req, handler)
		switch {
		case err == nil:
			return resp, nil
		case errors.Is(err, errResend): // it was lost
		case status.Convert(err).Message() == raft.ErrProposalDropped.Error(): // there was no leader to send it to
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

// attempt makes the write once. Its error is errResend where a change of leaders has swallowed it.
func (r resender) attempt(ctx context.Context, m member, changed, term <-chan struct{}, req any, handler grpc.UnaryHandler) (any, error) {
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
		case <-time.After(patience):
		}
	}
	for {
		// Etcd gives a read that reaches its loop together with the election the same notice as we had, as an error.
		err := m.LinearizableReadNotify(waiting)
		select {
		case out := <-done:
			return out.resp, out.err
		case <-time.After(grace):
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
