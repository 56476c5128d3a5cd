package external

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// truthful is one of kine's SQL drivers (v0.17.5) whose answers are right while others write to the same database.
// Two of kine's own are not:
//
// LogStructured.Create loses the revision of a key that is created again after it was deleted: the second
// Append's is assigned to a variable of the inner block, and the newest revision that the driver knows of takes
// its place. While others write, or just when the watches come to it, that is one before or after the key's own:
// a wrong resourceVersion for the API server's client. And where the first Append failed and there is no
// such key, it says that it created one. Here what is there is read after each create.
//
// SQLLog.CurrentRevision stands still once it and the revision up to which SQLLog polled differ, as they do when
// another server writes between the two reads of them at the start: poll moves it on only from the one that it
// came from itself. The next write of our own mends that, but the progress of watches stands still until then,
// and with it every cache of an API server that starts; and it writes nothing until its caches are filled.
// Here the newest revision that a watch has brought counts too.
//
// Create, Update and Delete take a failed write for a key that has changed meanwhile; the API server would try again
// without a pause. Here the error of the write itself is returned.
type truthful struct {
	server.Backend
	scrub func(error) error
	seen  atomic.Int64
}

// makeTruthful makes a Constructor of a driver's that tells the truth. scrub takes secrets out of errors.
func makeTruthful(drive drivers.Constructor, scrub func(error) error) drivers.Constructor {
	return func(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (bool, server.Backend, error) {
		elect, b, err := drive(ctx, wg, cfg)
		if err != nil {
			return false, nil, err
		}
		return elect, &truthful{Backend: b, scrub: scrub}, nil
	}
}

// Start is server.Backend's. Whatever is older than its reading is in the first answer of every watch that begins
// later, so it counts as seen.
func (t *truthful) Start(ctx context.Context) error {
	if err := t.Backend.Start(ctx); err != nil {
		return err
	}
	wr := t.Watch(ctx, 0)
	rev, _, err := t.Get(ctx, "compact_rev_key", 0, true)
	if err != nil {
		return err
	}
	t.saw(rev)
	go func() {
		for ctx.Err() == nil {
			for batch := range wr.Eventc {
				t.saw(batch.CurrentRev)
			}
			if ctx.Err() == nil { // it was too slow
				wr = t.Watch(ctx, 0)
			}
		}
	}()
	return nil
}

// CurrentRevision is server.Backend's. kine tells a stream of it only once all of its watches have come that far.
func (t *truthful) CurrentRevision(ctx context.Context) (int64, error) {
	rev, err := t.Backend.CurrentRevision(ctx)
	return max(rev, t.seen.Load()), err
}

// Watch is server.Backend's. One from now on begins where CurrentRevision says, too.
func (t *truthful) Watch(ctx context.Context, revision int64) server.WatchResult {
	if revision == 0 {
		if rev, err := t.CurrentRevision(ctx); err == nil {
			revision = rev + 1
		}
	}
	return t.Backend.Watch(ctx, revision)
}

func (t *truthful) saw(rev int64) {
	for {
		old := t.seen.Load()
		if old >= rev || t.seen.CompareAndSwap(old, rev) {
			return
		}
	}
}

// Create is server.Backend's. Where others have changed the key already, its create's revision is still
// that one; where they have deleted it, nobody knows, and the error is for a client who tries again.
func (t *truthful) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	ctx, written := withResult(ctx)
	rev, err := t.Backend.Create(ctx, key, value, lease)
	if failed := written.failed("create", key, t.scrub); failed != nil {
		return 0, failed
	}
	if err != nil {
		return rev, err
	}
	_, kv, err := t.Get(ctx, key, 0, true)
	if err != nil {
		return 0, err
	}
	if kv == nil {
		return 0, status.Errorf(codes.Unavailable, "create %s: it is not in the database afterwards: not written, or deleted since", key)
	}
	return kv.CreateRevision, nil
}

// Update is server.Backend's.
func (t *truthful) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	ctx, written := withResult(ctx)
	rev, kv, ok, err := t.Backend.Update(ctx, key, value, revision, lease)
	if failed := written.failed("update", key, t.scrub); failed != nil {
		return 0, nil, false, failed
	}
	return rev, kv, ok, err
}

// Delete is server.Backend's.
func (t *truthful) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	ctx, written := withResult(ctx)
	rev, kv, ok, err := t.Backend.Delete(ctx, key, revision)
	if failed := written.failed("delete", key, t.scrub); failed != nil {
		return 0, nil, false, failed
	}
	return rev, kv, ok, err
}
