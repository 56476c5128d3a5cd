package addons

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	events "k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/server/addons/manifest"
)

// Config is what the server gives.
type Config struct {
	Dir      string               // the user's manifests; made when it is not there
	Embedded fs.FS                // the program's
	Vars     map[string]string    // for ${NAME} in the program's
	Disable  []string             // names of manifests to leave out
	Server   string               // name of this server: another one's files are not ours to prune
	REST     *rest.Config         // as an administrator
	Recorder events.EventRecorder // default: one of our own
	Log      *slog.Logger
}

// State is how a manifest stands.
type State string

// The states of a manifest.
const (
	Pending  State = "pending"
	Applied  State = "applied"
	Failing  State = "failing"  // tried again by itself
	Invalid  State = "invalid"  // until the file changes; what it applied before stays
	Skipped  State = "skipped"  // left as it is, because of a .skip file
	Disabled State = "disabled" // removed, because of --disable
	Foreign  State = "foreign"  // applied by another server
	Removed  State = "removed"  // its file is gone, and with it what it had applied
)

// FileStatus is one manifest in Status.
type FileStatus struct {
	Name    string    `json:"name"`
	Origin  string    `json:"origin"`
	State   State     `json:"state"`
	Objects int       `json:"objects"`
	Error   string    `json:"error,omitempty"`
	Since   time.Time `json:"since"`
}

// Controller keeps manifests applied.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	client   *client
	typed    kubernetes.Interface
	watches  *watches
	recorder events.EventRecorder
	queue    workqueue.TypedRateLimitingInterface[string]
	drift    workqueue.TypedRateLimiter[string]

	mu    sync.Mutex
	items map[string]*item        // by id
	owner map[manifest.Key]string // which manifest an object belongs to
	scan  error                   // why the folder could not be read
}

// item is one manifest in memory.
type item struct {
	file     manifest.File
	gone     bool // no such file any more
	disabled bool
	objs     []*unstructured.Unstructured
	err      error // why objs could not be read
	rec      *record
	status   FileStatus
	lastFix  time.Time // when drift was last undone
}

const (
	workers    = 3
	retryMin   = 200 * time.Millisecond
	retryMax   = 5 * time.Minute
	driftCalm  = 10 * time.Minute
	watchSync  = 30 * time.Second
	opTimeout  = 5 * time.Minute
	quietEvent = 100 * time.Millisecond
)

// New prepares the controller; nothing is read or sent yet.
func New(cfg Config) (*Controller, error) {
	c := &Controller{
		cfg: cfg, log: cfg.Log.With("component", "addons"),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryMin, retryMax)),
		drift: workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, retryMax),
		items: map[string]*item{}, owner: map[manifest.Key]string{},
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
	return c, nil
}

// Run works until ctx ends. It is ready when every embedded manifest has been tried once.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("create manifests folder: %w", err)
	}
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	defer files.Close() //nolint:errcheck // nothing is written
	embedded, err := manifest.ReadEmbedded(c.cfg.Embedded, c.cfg.Vars)
	if err != nil {
		return err
	}
	if err := c.loadRecords(ctx); err != nil {
		return err
	}
	defer c.watches.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.queue.ShutDown()

	if c.recorder = c.cfg.Recorder; c.recorder == nil {
		b := events.NewBroadcaster(events.WithContext(ctx))
		b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.typed.CoreV1().Events("")})
		defer b.Shutdown()
		c.recorder = b.NewRecorder(scheme.Scheme, core.EventSource{Component: manager})
	}

	again := c.rescan(embedded, files)
	first := c.waitFirst(embedded)
	for range workers {
		wg.Go(func() { c.work(ctx, first) })
	}
	first.whenDone(ready)

	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	if again {
		timer.Reset(manifest.Settle)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-files.Events:
			if !ok {
				return errors.New("watch files: ended")
			}
			if e.Op != fsnotify.Chmod {
				timer.Reset(quietEvent)
			}
		case err := <-files.Errors:
			// An overflow: events were lost, so look at everything.
			c.log.Warn("watching the manifests folder", "error", err)
			timer.Reset(quietEvent)
		case <-timer.C:
			if c.rescan(embedded, files) {
				timer.Reset(manifest.Settle)
			}
		}
	}
}

// loadRecords waits for the API server and learns what earlier runs have applied.
func (c *Controller) loadRecords(ctx context.Context) error {
	delay := retryMin
	for {
		list, err := c.typed.CoreV1().ConfigMaps(recordNamespace).List(ctx, meta.ListOptions{LabelSelector: labelRecord})
		if err == nil {
			for _, cm := range list.Items {
				id, rec, err := decodeRecord(&cm)
				if err != nil {
					// Whoever damaged it has taken over what it lists.
					c.log.Warn("a manifest's record is damaged, what it listed is no longer pruned", "error", err)
					continue
				}
				c.items[id] = &item{gone: true, rec: rec, file: manifest.File{Name: rec.Name, ID: id, Origin: rec.Origin},
					status: FileStatus{Name: rec.Name, Origin: rec.Origin, State: Pending, Objects: len(rec.Items), Since: time.Now()}}
			}
			return nil
		}
		c.log.Debug("waiting for the API server", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, 10*time.Second)
	}
}

// rescan reads the folder and hands out what changed. It says whether some file is still being written.
func (c *Controller) rescan(embedded map[string]manifest.File, w *fsnotify.Watcher) (again bool) {
	scan, err := manifest.ReadDir(c.cfg.Dir, time.Now())
	if err == nil {
		for _, d := range scan.Dirs {
			if !slices.Contains(w.WatchList(), d) {
				if err := w.Add(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
					c.log.Warn("watching the manifests folder", "folder", d, "error", err)
				}
				again = true // files may have come between reading and watching
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		// Not the same as an empty folder: nothing is pruned for it.
		if c.scan == nil {
			c.log.Error("the manifests folder cannot be read, what it held stays applied", "error", err)
		}
		c.scan = err
		scan = manifest.Scan{}
	} else {
		c.scan = nil
	}
	present := map[string]bool{}
	for _, f := range manifest.Merge(embedded, scan) {
		present[f.ID] = true
		it := c.items[f.ID]
		if c.scan != nil && it != nil && it.file.Origin != manifest.Embedded {
			continue
		}
		c.take(f)
	}
	for id, it := range c.items {
		skip := scan.Skips[it.file.Name]
		if present[id] || it.gone && it.status.State != Pending && it.file.Skip == skip {
			continue
		}
		if c.scan != nil && it.file.Origin != manifest.Embedded || scan.Unsettled[it.file.Name] {
			continue
		}
		it.gone, it.objs, it.err = true, nil, nil
		it.disabled = manifest.Disabled(it.file.Name, c.cfg.Disable)
		it.file.Skip = skip
		c.queue.Add(id)
	}
	c.claim()
	return again || len(scan.Unsettled) > 0
}

// take compares a file with what is known of it. c.mu is held.
func (c *Controller) take(f manifest.File) {
	it := c.items[f.ID]
	disabled := manifest.Disabled(f.Name, c.cfg.Disable)
	same := it != nil && !it.gone && it.file.Sum == f.Sum && it.file.Skip == f.Skip && it.file.Origin == f.Origin &&
		fmt.Sprint(it.file.Err) == fmt.Sprint(f.Err)
	if same {
		return
	}
	if it == nil {
		it = &item{status: FileStatus{State: Pending, Since: time.Now()}}
		c.items[f.ID] = it
	}
	it.objs, it.err = nil, f.Err
	if it.err == nil && !disabled && !f.Skip {
		it.objs, it.err = manifest.Decode(f.Data)
	}
	f.Data = nil // decoded; the text need not stay
	it.file, it.gone, it.disabled = f, false, disabled
	it.status.Name, it.status.Origin = f.Name, f.Origin
	c.queue.Forget(f.ID)
	c.queue.Add(f.ID)
}

// claim decides which manifest each object belongs to: the first in the order of names. Manifests that
// lose or win an object by it are looked at again. c.mu is held.
func (c *Controller) claim() {
	ids := make([]string, 0, len(c.items))
	for id := range c.items {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(c.items[a].file.Name, c.items[b].file.Name) })
	owner := map[manifest.Key]string{}
	for _, id := range ids {
		for _, o := range c.items[id].objs {
			k := manifest.KeyOf(o.GroupVersionKind().GroupKind(), o.GetNamespace(), o.GetName())
			if _, taken := owner[k]; !taken {
				owner[k] = id
			}
		}
		// An invalid or skipped file keeps what it has applied.
		if it := c.items[id]; it.rec != nil && (it.err != nil || it.file.Skip) {
			for _, e := range it.rec.Items {
				if _, taken := owner[e.key()]; !taken {
					owner[e.key()] = id
				}
			}
		}
	}
	for k, id := range owner {
		if old, had := c.owner[k]; had && old != id {
			c.queue.Add(id)
			c.queue.Add(old)
		}
	}
	c.owner = owner
}

func (c *Controller) ownerOf(k manifest.Key) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner[k]
}

func (c *Controller) work(ctx context.Context, first *firstPass) {
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
		first.done(id)
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

func (c *Controller) setStatus(id string, state State, objects int, err error) {
	c.mu.Lock()
	it := c.items[id]
	if it == nil {
		c.mu.Unlock()
		return
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	changed := it.status.State != state || it.status.Error != text
	it.status.Objects = objects
	if changed {
		it.status.State, it.status.Error, it.status.Since = state, text, time.Now()
	}
	name, rec := it.file.Name, it.rec
	c.mu.Unlock()
	if !changed {
		return
	}
	switch state {
	case Invalid, Failing:
		c.log.Warn("manifest", "name", name, "state", state, "error", err)
		c.event(id, rec, core.EventTypeWarning, map[State]string{Invalid: "InvalidManifest", Failing: "ApplyFailed"}[state], text)
	default:
		c.log.Info("manifest", "name", name, "state", state, "objects", objects)
	}
}

func (c *Controller) event(id string, rec *record, kind, reason, text string) {
	if c.recorder == nil || rec == nil || rec.uid == "" {
		return
	}
	if len(text) > 1000 {
		text = strings.ToValidUTF8(text[:1000], "") + " …"
	}
	c.recorder.Event(rec.reference(id), kind, reason, text)
}

// Status tells how each manifest stands, by name.
func (c *Controller) Status() []FileStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []FileStatus
	for _, it := range c.items {
		if it.gone && it.rec == nil {
			continue
		}
		out = append(out, it.status)
	}
	slices.SortFunc(out, func(a, b FileStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Section is Status for `umiak status`.
func (c *Controller) Section(context.Context) status.Section {
	s := status.Section{Name: "Manifests"}
	for _, f := range c.Status() {
		detail := fmt.Sprintf("%d objects", f.Objects)
		if f.Error != "" {
			detail = strings.ReplaceAll(f.Error, "\n", "; ")
		}
		s.Rows = append(s.Rows, status.Row{Name: f.Name, State: string(f.State), Detail: detail})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.scan != nil {
		s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "unreadable", Detail: c.scan.Error()})
	}
	return s
}

// firstPass counts down the embedded manifests.
type firstPass struct {
	mu    sync.Mutex
	left  map[string]bool
	ready func()
}

func (c *Controller) waitFirst(embedded map[string]manifest.File) *firstPass {
	f := &firstPass{left: map[string]bool{}}
	for _, e := range embedded {
		f.left[e.ID] = true
	}
	return f
}

func (f *firstPass) whenDone(ready func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.left) == 0 {
		ready()
		return
	}
	f.ready = ready
}

func (f *firstPass) done(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.left[id] {
		return
	}
	delete(f.left, id)
	if len(f.left) == 0 && f.ready != nil {
		f.ready()
	}
}
