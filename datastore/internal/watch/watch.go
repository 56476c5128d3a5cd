// Package watch serves etcd's Watch API from a hub.
//
// It replaces kine's watch server, which wakes every watch for every write, whatever its key, polls for progress, and
// ends the process when a progress report races with a new watch. This one wakes only the watches of the written key,
// and reports progress on request.
//
// It imports etcd's API and datastore/internal/hub. Package datastore calls it.
package watch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/umiak-io/umiak/datastore/internal/hub"
)

// CompactKey is the key under which kine's server stores kube-apiserver's compactKey, with a version in the value.
// kube-apiserver drops the snapshots of its watch caches up to the revision in it, and refuses to continue a list
// from an older one.
const CompactKey = "compact_rev_key_apiserver"

const (
	compactKey = "compact_rev_key"
	noWatch    = -1 // ID in messages to all watches of a stream
)

// Server implements etcdserverpb.WatchServer.
type Server struct {
	etcdserverpb.UnimplementedWatchServer
	hub      *hub.Hub
	interval time.Duration
}

// New returns a server that reports progress at the interval to watches that requested notifications, if there is any.
func New(h *hub.Hub, interval time.Duration) *Server { return &Server{hub: h, interval: interval} }

// stream is one gRPC stream of a client, with all its watches.
type stream struct {
	hub *hub.Hub
	ws  etcdserverpb.Watch_WatchServer

	mu      sync.Mutex // held while sending, so that messages are in order
	watches map[int64]*watch
	wanted  bool // a progress request is not answered yet
	ticker  *time.Timer
	every   time.Duration
}

type watch struct {
	id       int64
	w        *hub.Watcher
	key      string
	prev     bool
	progress bool
	ctx      context.Context //nolint:containedctx // ends the watch's own goroutine
	cancel   context.CancelFunc
	sentRev  int64 // newest revision that this watch has sent
}

// Watch serves one stream.
func (s *Server) Watch(ws etcdserverpb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(ws.Context())
	st := &stream{hub: s.hub, ws: ws, watches: map[int64]*watch{}, every: s.interval}
	var wg sync.WaitGroup
	defer func() {
		cancel()
		st.mu.Lock()
		if st.ticker != nil {
			st.ticker.Stop()
		}
		clear(st.watches)
		st.mu.Unlock()
		wg.Wait()
	}()
	for id := int64(1); ; {
		msg, err := ws.Recv()
		if err != nil {
			return err
		}
		switch {
		case msg.GetCreateRequest() != nil:
			w, err := st.create(ctx, id, msg.GetCreateRequest())
			if err != nil {
				return err
			}
			if id++; w != nil {
				wg.Add(1)
				go func() {
					defer wg.Done()
					st.run(w.ctx, w)
				}()
			}
		case msg.GetCancelRequest() != nil:
			st.end(msg.GetCancelRequest().WatchId, nil, 0)
		case msg.GetProgressRequest() != nil:
			st.mu.Lock()
			st.wanted = true
			err = st.tryProgress()
			st.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// create answers a request for a watch, in the order of the requests. It returns nil if the request was refused.
func (st *stream) create(ctx context.Context, id int64, r *etcdserverpb.WatchCreateRequest) (*watch, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if r.WatchId != 0 {
		return nil, st.ws.Send(&etcdserverpb.WatchResponse{Header: st.header(), WatchId: noWatch, Created: true,
			Canceled: true, CancelReason: server.ErrInvalidWatch.Error()})
	}
	key, end := string(r.Key), string(r.RangeEnd)
	if key == "\x00" && end == "\x00" {
		key, end = "", ""
	}
	if key == compactKey {
		key = CompactKey
	}
	var w *hub.Watcher
	var current, compact int64
	err := server.ErrCompacted
	if r.StartRevision >= 0 {
		w, current, compact, err = st.hub.NewWatcher(key, end, r.StartRevision)
	}
	created := &etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: current}, WatchId: id,
		Created: true}
	if serr := st.ws.Send(created); serr != nil {
		if w != nil {
			w.Close()
		}
		return nil, serr
	}
	if err != nil {
		res := &etcdserverpb.WatchResponse{Header: created.Header, WatchId: id, Canceled: true,
			CancelReason: err.Error()}
		if errors.Is(err, server.ErrCompacted) {
			res.CompactRevision = max(compact, 1)
		}
		return nil, st.ws.Send(res)
	}
	out := &watch{id: id, w: w, key: key, prev: r.PrevKv, progress: r.ProgressNotify}
	out.ctx, out.cancel = context.WithCancel(ctx)
	st.watches[id] = out
	if out.progress && st.ticker == nil {
		st.ticker = time.AfterFunc(st.every, st.tick)
	}
	return out, nil
}

func (st *stream) header() *etcdserverpb.ResponseHeader {
	current, _ := st.hub.Revisions()
	return &etcdserverpb.ResponseHeader{Revision: current}
}

// run sends a watch's events until it ends.
func (st *stream) run(ctx context.Context, w *watch) {
	defer w.cancel()
	defer w.w.Close()
	for {
		events, rev, more, err := w.w.Take(ctx)
		if err != nil {
			if ctx.Err() == nil {
				_, compact := st.hub.Revisions()
				st.end(w.id, err, compact)
			}
			return
		}
		st.mu.Lock()
		if st.watches[w.id] != w {
			st.mu.Unlock()
			return
		}
		if len(events) > 0 {
			err = st.ws.Send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev},
				WatchId: w.id, Events: w.convert(events)})
			w.sentRev = rev
		}
		if !more {
			w.w.Sent()
			if err == nil && st.wanted {
				err = st.tryProgress()
			}
		}
		st.mu.Unlock()
		if err != nil {
			return // the stream is broken, so Recv fails too
		}
		if more {
			continue
		}
		select {
		case <-w.w.Wake():
		case <-ctx.Done():
			return
		}
	}
}

// end cancels a watch and sends the reason to the client. err is nil if the client asked for it.
func (st *stream) end(id int64, err error, compact int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	w, ok := st.watches[id]
	if !ok {
		return
	}
	delete(st.watches, id)
	w.cancel()
	res := &etcdserverpb.WatchResponse{Header: st.header(), WatchId: id, Canceled: true}
	if err != nil {
		res.CancelReason = err.Error()
		if errors.Is(err, server.ErrCompacted) {
			res.CompactRevision = compact
		}
	}
	_ = st.ws.Send(res) // Recv fails on a broken stream
}

// tryProgress answers a progress request if all watches have sent all their events. The caller holds mu, so that no
// newer event is sent before the answer.
func (st *stream) tryProgress() error {
	rev, _ := st.hub.Revisions()
	for _, w := range st.watches {
		synced, ok := w.w.Synced()
		if !ok {
			return nil // run calls tryProgress when the watch has caught up
		}
		rev = min(rev, synced)
	}
	st.wanted = false
	return st.ws.Send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev},
		WatchId: noWatch})
}

// tick sends progress notifications to the watches that want them and have sent nothing newer.
func (st *stream) tick() {
	st.mu.Lock()
	defer st.mu.Unlock()
	again := false
	for _, w := range st.watches {
		if !w.progress {
			continue
		}
		again = true
		if rev, ok := w.w.Synced(); ok && rev > w.sentRev {
			if st.ws.Send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: rev},
				WatchId: w.id}) != nil {
				return
			}
			w.sentRev = rev
		}
	}
	if again {
		st.ticker.Reset(st.every)
	} else {
		st.ticker = nil
	}
}

func (w *watch) convert(events []*server.Event) []*mvccpb.Event {
	out := make([]*mvccpb.Event, 0, len(events))
	for _, e := range events {
		m := &mvccpb.Event{Kv: keyValue(e.KV)}
		if e.Delete {
			m.Type = mvccpb.DELETE
		}
		if w.prev && e.PrevKV != nil {
			m.PrevKv = keyValue(e.PrevKV)
		}
		out = append(out, m)
	}
	return out
}

func keyValue(kv *server.KeyValue) *mvccpb.KeyValue {
	out := &mvccpb.KeyValue{Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version, Lease: kv.Lease,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision}
	if kv.Key == CompactKey {
		out.Key = []byte(compactKey)
		out.Version, out.Value = server.DecodeVersion(kv.Value)
	}
	return out
}
