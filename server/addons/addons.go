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

// Config is what the server gives.
type Config struct {
	Dir      string            // the user's manifests; made when it is not there
	Embedded fs.FS             // the program's
	Vars     map[string]string // for ${NAME} in the program's
	Disable  []string          // names of manifests to leave out
	Server   string            // name of this server: another one's files are not ours to prune
	Alone    bool              // no other server can share the datastore: whoever had a file before was this one
	Node     bool              // this server runs a node
	// Left says whether a server that had a file, and a node or none, is no part of the cluster any more. Default: none has left.
	Left     func(ctx context.Context, server string, node bool) (bool, error)
	REST     *rest.Config         // as an administrator
	Recorder events.EventRecorder // default: one of our own
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
	dirs      map[string]string // what is watched; Run's alone, as links
	links     bool              // there are links in the folder
	unwatched bool              // there are too many watchers on this machine
	poked     chan struct{}     // holds one: Run is to look when it must read the folder again
	first     *firstPass
	recorder  events.EventRecorder
	queue     workqueue.TypedRateLimitingInterface[string]
	drift     workqueue.TypedRateLimiter[string]

	mu     sync.Mutex
	items  map[string]*item        // by id
	owner  map[manifest.Key]string // which manifest an object belongs to
	scopes map[schema.GroupKind]scope
	scan   error  // why the folder could not be read
	full   string // which folder has held files since the start, by manifest.Identity
	look   look
	// overlooked are files that are not applied and seem to be meant to be, each with the reason.
	overlooked map[string]string
	gate       gate
}

// item is one manifest in memory.
type item struct {
	file     manifest.File
	gone     bool   // no such file any more
	missed   bool   // a look at the folder has found it gone; a record that was just read is not proof
	held     string // why it is not proven that a person took the file away
	waits    bool   // something of it is to be pruned when that is possible
	disabled bool
	objs     []*unstructured.Unstructured
	err      error  // why objs could not be read
	text     []byte // what could not be decoded
	rec      *record
	status   FileStatus
	lastFix  time.Time // when drift was last undone
}

const (
	workers   = 3
	retryMin  = 200 * time.Millisecond
	retryMax  = 5 * time.Minute
	driftCalm = 10 * time.Minute
	watchSync = 30 * time.Second
	opTimeout = 5 * time.Minute
)

// New prepares the controller; nothing is read or sent yet.
func New(cfg Config) (*Controller, error) {
	c := &Controller{
		cfg: cfg, log: cfg.Log.With("component", "addons"),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryMin, retryMax)),
		drift: workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, retryMax),
		items: map[string]*item{}, owner: map[manifest.Key]string{}, scopes: map[schema.GroupKind]scope{},
		folder: manifest.NewFolder(cfg.Dir), poked: make(chan struct{}, 1),
	}
	if c.cfg.Left == nil {
		c.cfg.Left = func(context.Context, string, bool) (bool, error) { return false, nil }
	}
	rc := rest.CopyConfig(cfg.REST)
	rc.QPS, rc.Burst = 100, 200 // a loopback connection; bounded only against our own mistakes
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

// Run works until ctx ends. It is ready when every embedded manifest has been tried once.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		c.log.Warn("creating the manifests folder", "error", err) // reading it says so as well, and is tried again
	}
	files, err := fsnotify.NewWatcher()
	if err != nil {
		c.log.Warn("watching the manifests folder; it is read again and again instead, until umiak starts anew", "error", err, "every", lookUnwatched)
		files = &fsnotify.Watcher{} // gives no events
		c.unwatched = true
	} else {
		defer files.Close() //nolint:errcheck // nothing is written
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
			c.log.Warn("a disk of manifests that is mounted or unmounted is noticed late", "error", err)
		}
	})
	return c.watchFolder(ctx, embedded, files, mounts.C, again)
}

// watchFolder reads the folder again when something changes in it, and after again, if that is not 0.
func (c *Controller) watchFolder(ctx context.Context, embedded map[string]manifest.File, files *fsnotify.Watcher, remounted <-chan struct{}, again time.Duration) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due time.Time // zero: nothing is to be done
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
			// An overflow: events were lost, so look at everything.
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

// onLive is told of every change to an object that carries our label.
func (c *Controller) onLive(gvk schema.GroupKind, namespace, name, id, fields string) {
	k := manifest.KeyOf(gvk, namespace, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner[k] != "" {
		id = c.owner[k] // its label may be what was changed
	}
	it := c.items[id]
	if it == nil || it.rec == nil || it.gone || it.disabled || it.file.Skip || it.err != nil {
		return
	}
	e, ok := it.rec.find(k)
	if !ok || e.Fields == fields || e.Fields == "" {
		return
	}
	// Somebody may want it otherwise just as firmly: then we ask ever more rarely.
	if time.Since(it.lastFix) > driftCalm {
		c.drift.Forget(id)
	}
	it.lastFix = time.Now()
	c.queue.AddAfter(id, c.drift.When(id))
}
