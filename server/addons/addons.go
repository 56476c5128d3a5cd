package addons

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	events "k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/umiak-io/umiak/internal/mounted"
	"github.com/umiak-io/umiak/server/addons/manifest"
)

// Config describes a Controller.
type Config struct {
	Dir      string            // folder of the user's manifests; created if missing
	Embedded fs.FS             // the embedded manifests
	Vars     map[string]string // values for ${NAME} in embedded manifests
	Disable  []string          // names of manifests not to apply
	Server   string            // this server's name: files of other servers are not pruned
	Alone    bool              // no other server can share the datastore, so all earlier files were this server's
	Node     bool              // this server runs a node
	// Left reports whether a server that had a file has left the cluster; node says whether it had a node. nil means
	// that no server has left.
	Left     func(ctx context.Context, server string, node bool) (bool, error)
	REST     *rest.Config         // with an administrator's rights
	Recorder events.EventRecorder // nil means a new one
	Log      *slog.Logger
}

// Controller keeps manifests applied.
type Controller struct {
	cfg       Config
	log       *slog.Logger
	client    *client
	typed     kubernetes.Interface
	watches   *watches
	kinds     *kinds
	folder    *manifest.Folder
	dirs      map[string]string // watched folders; used only by Run, like links
	links     bool              // the folder contains links
	unwatched bool              // no inotify watch is available
	poked     chan struct{}     // holds one signal: Run recomputes when to read the folder
	first     *firstPass
	recorder  events.EventRecorder
	queue     workqueue.TypedRateLimitingInterface[string]
	drift     workqueue.TypedRateLimiter[string]

	mu     sync.Mutex
	items  map[string]*item        // by id
	owner  map[manifest.Key]string // the manifest that an object belongs to
	scopes map[schema.GroupKind]scope
	scan   error  // error of reading the folder, nil if it was readable
	full   string // manifest.Identity of the folder that had files since the start
	look   look
	// overlooked maps files that look like manifests but are not applied to the reason.
	overlooked map[string]string
	gate       gate
}

// item is the in-memory state of one manifest.
type item struct {
	file     manifest.File
	gone     bool   // the file does not exist
	missed   bool   // a scan has found the file gone, as opposed to only a record
	held     string // why it is not proven that a person removed the file; "" if it is
	waits    bool   // it has objects to prune when that is allowed
	disabled bool
	objs     []*unstructured.Unstructured
	err      error  // error of reading or decoding the file
	text     []byte // the content that could not be decoded
	rec      *record
	status   FileStatus
	lastFix  time.Time // when drift was last corrected
}

const (
	workers     = 3 // manifests that are reconciled at the same time
	retryMin    = 200 * time.Millisecond
	retryMax    = 5 * time.Minute
	driftReset  = 10 * time.Minute // without drift, resets its back-off
	syncTimeout = 30 * time.Second // of a new watch
	opTimeout   = 5 * time.Minute  // of one reconciliation
)

// New returns a controller that has read and sent nothing yet.
func New(cfg Config) (*Controller, error) {
	c := &Controller{
		cfg: cfg, log: cfg.Log.With("component", "addons"),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryMin, retryMax)),
		drift: workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, retryMax),
		items: map[string]*item{}, owner: map[manifest.Key]string{}, scopes: map[schema.GroupKind]scope{},
		folder: manifest.NewFolder(cfg.Dir), poked: make(chan struct{}, 1),
	}
	if c.cfg.Left == nil {
		c.cfg.Left = func(context.Context, string, bool) (bool, error) { return false, nil }
	}
	rc := rest.CopyConfig(cfg.REST)
	rc.QPS, rc.Burst = 100, 200 // a loopback connection; bounds the load in case of a bug
	var err error
	if c.client, err = newClient(rc); err != nil {
		return nil, fmt.Errorf("set up manifests: %w", err)
	}
	if c.typed, err = kubernetes.NewForConfig(rc); err != nil {
		return nil, fmt.Errorf("set up manifests: %w", err)
	}
	meta, err := metadata.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("set up manifests: %w", err)
	}
	c.watches = newWatches(meta, c.onLive)
	c.kinds = newKinds(meta, func(id string) {
		c.queue.Forget(id)
		c.queue.Add(id)
	})
	return c, nil
}

// Run works until ctx ends. It calls ready when every embedded manifest has been tried once.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		c.log.Warn("creating the manifests folder", "error", err) // reading it reports the error and is retried
	}
	files, err := fsnotify.NewWatcher()
	if err != nil {
		c.log.Warn("cannot watch the manifests folder, reading it periodically until the next start", "error", err,
			"every", lookUnwatched)
		files = &fsnotify.Watcher{} // gives no events
		c.unwatched = true
	} else {
		defer files.Close() //nolint:errcheck // holds no data
	}
	embedded, err := manifest.ReadEmbedded(c.cfg.Embedded, c.cfg.Vars)
	if err != nil {
		return err
	}
	defer c.watches.close()
	defer c.kinds.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.queue.ShutDown()
	if err := c.followRecords(ctx, &wg); err != nil {
		return err
	}

	if c.recorder = c.cfg.Recorder; c.recorder == nil {
		b := events.NewBroadcaster(events.WithContext(ctx))
		b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.typed.CoreV1().Events("")})
		defer b.Shutdown()
		c.recorder = b.NewRecorder(scheme.Scheme, core.EventSource{Component: manager})
	}

	c.mu.Lock()
	c.first = newFirstPass(embedded)
	c.mu.Unlock()
	again := c.rescan(embedded, files)
	for range workers {
		wg.Go(func() { c.work(ctx) })
	}
	c.first.whenDone(ready)
	mounts := mounted.Watch(ctx)
	wg.Go(func() {
		if err := <-mounts.Ended; err != nil {
			c.log.Warn("mounting or unmounting a disk of manifests is detected with a delay", "error", err)
		}
	})
	return c.watchFolder(ctx, embedded, files, mounts.C, again)
}

// watchFolder reads the folder again when something changes in it, and after the duration again, if that is not 0.
func (c *Controller) watchFolder(ctx context.Context, embedded map[string]manifest.File, files *fsnotify.Watcher,
	remounted <-chan struct{}, again time.Duration) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due time.Time // zero: no scan is due
	within := func(d time.Duration) {
		if at := time.Now().Add(d); d > 0 && (due.IsZero() || at.Before(due)) {
			due = at
			timer.Reset(d)
		}
	}
	within(again)
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-files.Events:
			if !ok {
				return errors.New("watch files: ended")
			}
			if e.Op != fsnotify.Chmod {
				within(quietEvent)
			}
		case err := <-files.Errors:
			// Events were lost: scan everything.
			c.log.Warn("watching the manifests folder", "error", err)
			within(quietEvent)
		case <-remounted:
			if c.affected() {
				within(quietEvent)
			}
		case <-c.poked:
			c.mu.Lock()
			d := c.again(time.Now())
			c.mu.Unlock()
			within(d)
		case <-timer.C:
			due = time.Time{}
			within(c.rescan(embedded, files))
		}
	}
}

func (c *Controller) work(ctx context.Context) {
	for {
		id, stop := c.queue.Get()
		if stop {
			return
		}
		if ctx.Err() == nil {
			op, cancel := context.WithTimeout(ctx, opTimeout)
			err := c.reconcile(op, id)
			cancel()
			if err != nil && ctx.Err() == nil {
				c.queue.AddRateLimited(id)
			} else {
				c.queue.Forget(id)
			}
		}
		c.queue.Done(id)
		c.first.done(id)
	}
}

// onLive handles a change of an object with umiak's label.
func (c *Controller) onLive(gvk schema.GroupKind, namespace, name, id, fields string) {
	k := manifest.KeyOf(gvk, namespace, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner[k] != "" {
		id = c.owner[k] // its label may have been changed
	}
	it := c.items[id]
	if it == nil || it.rec == nil || it.gone || it.disabled || it.file.Skip || it.err != nil {
		return
	}
	e, ok := it.rec.find(k)
	if !ok || e.Fields == fields || e.Fields == "" {
		return
	}
	// Another controller may change it back each time: back off.
	if time.Since(it.lastFix) > driftReset {
		c.drift.Forget(id)
	}
	it.lastFix = time.Now()
	c.queue.AddAfter(id, c.drift.When(id))
}
