package etcd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// elections is a member whose cluster changes leaders when the test calls elect.
type elections struct {
	changed chan struct{}
	term    chan struct{}
	reads   []error // results of reads, in order; the last one repeats
}

func (e *elections) LeaderChanged() <-chan struct{}           { return e.changed }
func (e *elections) FirstCommitInTermNotify() <-chan struct{} { return e.term }
func (e *elections) LinearizableReadNotify(context.Context) error {
	time.Sleep(10 * time.Millisecond)
	if len(e.reads) == 0 {
		return nil
	}
	err := e.reads[0]
	if len(e.reads) > 1 {
		e.reads = e.reads[1:]
	}
	return err
}

// elect begins a term, under another leader or the same one.
func (e *elections) elect(another bool) {
	if another {
		close(e.changed)
		e.changed = make(chan struct{})
	}
	close(e.term)
	e.term = make(chan struct{})
}

func TestResend(t *testing.T) {
	lost := func(ctx context.Context) (any, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(8 * time.Second):
			return nil, errors.New("request timed out")
		}
	}
	after := func(d time.Duration, v any) func(context.Context) (any, error) {
		return func(context.Context) (any, error) { time.Sleep(d); return v, nil }
	}
	dropped := func(context.Context) (any, error) {
		return nil, status.Error(codes.Unknown, raft.ErrProposalDropped.Error())
	}
	refused := func(context.Context) (any, error) { return nil, errors.New("no space") }
	type try = func(context.Context) (any, error)
	for name, c := range map[string]struct {
		tries   []try
		method  string
		changes int  // leaders, one a second
		same    bool // the leader is elected again each time
		reads   []error
		want    any
		err     string
		took    time.Duration
	}{
		"nothing happens":          {tries: []try{after(0, 1)}, want: 1},
		"an error is the caller's": {tries: []try{refused}, err: "no space"},
		"lost with its leader": {tries: []try{lost, after(0, 2)}, changes: 1, want: 2, took: time.Second +
			110*time.Millisecond},
		"lost twice": {tries: []try{lost, lost, after(0, 3)}, changes: 2, want: 3,
			took: 2*time.Second + 110*time.Millisecond},
		"lost with one leader after another": {tries: []try{lost, lost, lost, lost, lost}, changes: 5,
			err:  status.Convert(rpctypes.ErrGRPCTimeoutDueToLeaderFail).Message(),
			took: 5*time.Second + 110*time.Millisecond},
		"the same leader again": {tries: []try{lost, after(0, 2)}, changes: 1, same: true, want: 2,
			took: time.Second + sameLeaderWait + 110*time.Millisecond},
		"only slow under a new leader": {tries: []try{after(2*time.Second, 1)}, changes: 1, same: true, want: 1,
			took: 2 * time.Second},
		"none to send it to, then the same": {tries: []try{dropped, after(0, 2)}, changes: 1, same: true, want: 2,
			took: time.Second},
		"it had survived": {tries: []try{after(1050*time.Millisecond, 1)}, changes: 1, want: 1,
			took: 1050 * time.Millisecond},
		"the read met the election": {tries: []try{lost, after(0, 2)}, changes: 1,
			reads: []error{errors.New("leader changed"), nil}, want: 2, took: time.Second + 220*time.Millisecond},
		"no leader to send it to": {tries: []try{dropped, after(0, 2)}, changes: 1, want: 2, took: time.Second},
		"no leader at all":        {tries: []try{dropped}, err: raft.ErrProposalDropped.Error(), took: 5 * time.Second},
		"no majority": {tries: []try{lost}, changes: 1, reads: []error{errors.New("timeout")},
			err: "request timed out", took: 8 * time.Second},
		"what people send is not sent again": {tries: []try{lost}, method: etcdserverpb.KV_Put_FullMethodName,
			changes: 1, err: "request timed out", took: 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &elections{changed: make(chan struct{}), term: make(chan struct{}), reads: c.reads}
				go func() {
					for range c.changes {
						time.Sleep(time.Second)
						e.elect(!c.same)
					}
				}()
				r := resender{member: func(context.Context) (member, error) { return e, nil }, timeout: 5 * time.Second}
				if c.method == "" {
					c.method = etcdserverpb.KV_Txn_FullMethodName
				}
				begun, n := time.Now(), 0
				got, err := r.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: c.method},
					func(ctx context.Context, _ any) (any, error) {
						n++
						return c.tries[n-1](ctx)
					})
				if err == nil && c.err != "" || err != nil && status.Convert(err).Message() != c.err || got != c.want {
					t.Errorf("got %v, %v", got, err)
				}
				if n != len(c.tries) {
					t.Errorf("made %d times, want %d", n, len(c.tries))
				}
				if took := time.Since(begun); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
			})
		})
	}
}
