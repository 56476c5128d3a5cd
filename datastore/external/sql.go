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

// corrected wraps one of kine's SQL drivers (v0.17.5), which gives wrong answers while others write to the same
// database:
//
// LogStructured.Create loses the revision of a key that is created again after it was deleted: it assigns the revision
// of the second Append to a variable of the inner block and returns the newest revision that the driver knows. While
// others write, or before the watches have caught up, that is not the revision of the key, so the API server's client
// gets a wrong resourceVersion. If the first Append failed and there is no such key, Create even reports success.
// corrected reads the key after each create.
//
// SQLLog.CurrentRevision does not advance once it differs from the revision up to which SQLLog has polled, as after a
// start during which another server wrote between the reads of the two: poll advances it only from its own value. The
// next own write repairs that, but until then watches report no progress, an API server that starts does not fill its
// caches, and it writes nothing before they are filled. corrected also counts the newest revision seen by a watch.
//
// Create, Update and Delete take a failed write for a key that has changed, upon which the API server would try again
// without a pause. corrected returns the error of the write.
type corrected struct {
	server.Backend
	scrub func(error) error
	seen  atomic.Int64
}

// correct wraps the Constructor of a driver so that it returns a corrected Backend. scrub removes secrets from errors.
func correct(drive drivers.Constructor, scrub func(error) error) drivers.Constructor {
	return func(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (bool, server.Backend, error) {
		elect, b, err := drive(ctx, wg, cfg)
		if err != nil {
			return false, nil, err
		}
		return elect, &corrected{Backend: b, scrub: scrub}, nil
	}
}

// Start implements server.Backend. The first batch of a later watch contains everything older than the revision that
// Start reads, so that revision counts as seen.
func (t *corrected) Start(ctx context.Context) error {
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
			if ctx.Err() == nil { // the watch was ended because it was too slow
				wr = t.Watch(ctx, 0)
			}
		}
	}()
	return nil
}

// CurrentRevision implements server.Backend. kine reports it on a stream only once all watches of that stream have
// caught up with it.
func (t *corrected) CurrentRevision(ctx context.Context) (int64, error) {
	rev, err := t.Backend.CurrentRevision(ctx)
	return max(rev, t.seen.Load()), err
}

// Watch implements server.Backend. A watch of revision 0 begins after CurrentRevision.
func (t *corrected) Watch(ctx context.Context, revision int64) server.WatchResult {
	if revision == 0 {
		if rev, err := t.CurrentRevision(ctx); err == nil {
			revision = rev + 1
		}
	}
	return t.Backend.Watch(ctx, revision)
}

// saw raises seen to rev.
func (t *corrected) saw(rev int64) {
	for {
		old := t.seen.Load()
		if old >= rev || t.seen.CompareAndSwap(old, rev) {
			return
		}
	}
}

// Create implements server.Backend. It returns the create revision of the key as read afterwards, which is right even
// if others have changed the key since. If the key is not there, its fate is unknown, and the client gets an error
// upon which it tries again.
func (t *corrected) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
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
		return 0, status.Errorf(codes.Unavailable, "create %s: it is not in the database afterwards: not written, "+
			"or deleted since", key)
	}
	return kv.CreateRevision, nil
}

// Update implements server.Backend.
func (t *corrected) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64,
	*server.KeyValue, bool, error) {
	ctx, written := withResult(ctx)
	rev, kv, ok, err := t.Backend.Update(ctx, key, value, revision, lease)
	if failed := written.failed("update", key, t.scrub); failed != nil {
		return 0, nil, false, failed
	}
	return rev, kv, ok, err
}

// Delete implements server.Backend.
func (t *corrected) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	ctx, written := withResult(ctx)
	rev, kv, ok, err := t.Backend.Delete(ctx, key, revision)
	if failed := written.failed("delete", key, t.scrub); failed != nil {
		return 0, nil, false, failed
	}
	return rev, kv, ok, err
}
