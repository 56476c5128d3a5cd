package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/umiak-io/umiak/internal/mounted"
)

// Config describes an Importer.
type Config struct {
	Dir      string // the folder to follow
	Socket   string // containerd's socket
	State    string // file of the import records; keep it next to containerd's store
	Parallel int    // number of archives to import at the same time; 0 means 1
	Log      *slog.Logger
}

// State is the stage of an archive's import.
type State string

// The states of an archive.
const (
	Waiting   State = "waiting"
	Importing State = "importing"
	Imported  State = "imported"
	Failed    State = "failed"
)

// The states of a pull list, which also waits and fails.
const (
	Pulling State = "pulling"
	Pulled  State = "pulled"
)

// Status describes one archive or pull list.
type Status struct {
	File   string        `json:"file"`
	State  State         `json:"state"`
	Size   int64         `json:"size"`
	Read   int64         `json:"read,omitempty"`
	Images []string      `json:"images,omitempty"`
	Took   time.Duration `json:"took,omitempty"`
	// Error is also why an archive waits, which of its images are unusable, or which image of a list is being pulled.
	Error string `json:"error,omitempty"`
}

// Importer imports the archives of a folder, and those that are added to it, and pulls the images of its lists.
type Importer struct {
	cfg   Config
	lists *pullLists

	mu      sync.Mutex
	status  map[string]*Status
	records map[string]record
}

// New returns an importer for a folder, which Run creates if it does not exist.
func New(cfg Config) *Importer {
	cfg.Parallel = max(cfg.Parallel, 1)
	return &Importer{cfg: cfg, lists: newPullLists(nil), status: map[string]*Status{}}
}

// Status returns the status of every archive in the folder, sorted by name.
func (i *Importer) Status() []Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := make([]Status, 0, len(i.status))
	for _, name := range slices.Sorted(maps.Keys(i.status)) {
		out = append(out, *i.status[name])
	}
	return out
}

// settleTime is how long an archive must be unchanged before it is read.
const settleTime = time.Second

// Run imports until ctx ends. It calls ready at once: only pods that use the images wait for them.
func (i *Importer) Run(ctx context.Context, ready func()) error {
	ready()
	if err := i.run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("import images: %w", err)
	}
	return nil
}

func (i *Importer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := MakeFolder(i.cfg.Dir); err != nil {
		return err
	}
	f, err := watchFolder(i.cfg.Dir)
	if err != nil {
		return err
	}
	defer f.close()
	mounts := mounted.Watch(ctx) // inotify does not report mounts
	defer func() {
		cancel()
		<-mounts.Ended //nolint:errcheck // canceled above
	}()
	if i.records, err = loadState(i.cfg.State); err != nil {
		return err
	}
	c, err := Connect(i.cfg.Socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	if err := sweep(ctx, c); err != nil && ctx.Err() == nil {
		i.cfg.Log.Warn("remove the content of interrupted imports", "error", err)
	}

	q := newQueue()
	i.lists = newPullLists(c)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer q.close()
	defer i.lists.close()
	defer cancel() // runs before workers.Wait
	for range i.cfg.Parallel {
		workers.Go(func() {
			for name, ok := q.next(); ok; name, ok = q.next() {
				i.importNamed(ctx, c, name)
				q.done(name)
			}
		})
	}
	workers.Go(func() { i.lists.run(ctx, i) }) // apart from archives, which must not wait for a registry
	workers.Go(func() { i.followStore(ctx, c, q) })
	i.scan(q, f.real)
	i.forgetRemoved(ctx, c)
	return i.follow(ctx, c, q, f, mounts)
}

// MakeFolder creates the folder for archives. It leaves a dangling link alone: the link's target may be a disk that is
// not mounted yet.
func MakeFolder(dir string) error {
	if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	return os.MkdirAll(dir, 0o700)
}

// follow queues archives as they are added and changed, until ctx ends.
func (i *Importer) follow(ctx context.Context, c *client.Client, q *queue, f *folder, mounts mounted.Changes) error {
	changed := map[string]time.Time{} // time of the last event per archive
	rewatch := false                  // the set of watched folders may have changed
	tick := time.NewTimer(settleTime)
	tick.Stop()
	pending := func() bool { return len(changed) > 0 || rewatch }
	for {
		idle := !pending()
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-f.w.Events:
			if !ok {
				return errors.New("watch ended")
			}
			files, moved := f.touched(e)
			for _, name := range files {
				changed[name] = time.Now()
			}
			rewatch = rewatch || moved
		case <-mounts.C:
			rewatch = true
		case err := <-mounts.Ended:
			return err
		case err := <-f.w.Errors:
			// Events may be lost: scan everything.
			i.cfg.Log.Warn("watch images", "error", err)
			rewatch = true
			f.watched = nil
		case <-tick.C:
			// The timer runs only after events. It is not reset while it runs: a busy folder must not delay the update.
			if rewatch {
				rewatch = false
				differs, err := f.update()
				if err != nil {
					return err
				}
				if differs {
					i.scan(q, f.real)
				}
				i.forgetRemoved(ctx, c)
			}
			for name, at := range changed {
				if time.Since(at) >= settleTime {
					delete(changed, name)
					i.enqueue(q, f.real, name)
				}
			}
			if pending() {
				tick.Reset(settleTime / 4)
			} else {
				i.forgetRemoved(ctx, c)
			}
			continue
		}
		if idle && pending() {
			tick.Reset(settleTime)
		}
	}
}

// scan queues every archive of the folder. real is the folder's path without links, "" if it does not exist.
func (i *Importer) scan(q *queue, real string) {
	if real == "" {
		i.setStatus(&Status{File: i.cfg.Dir, State: Failed,
			Error: "the folder is not there; its archives are imported when it is back"})
		return
	}
	entries, err := os.ReadDir(real)
	i.mu.Lock()
	delete(i.status, i.cfg.Dir)
	i.mu.Unlock()
	if err != nil {
		i.setStatus(&Status{File: i.cfg.Dir, State: Failed, Error: err.Error()})
		return
	}
	for _, e := range entries {
		i.enqueue(q, real, e.Name())
	}
}

// enqueue queues one file of the folder if its name is that of an archive or a pull list. It reports a file whose content looks like
// an archive and whose name does not.
func (i *Importer) enqueue(q *queue, real, name string) {
	if real == "" || isUnfinished(name) {
		return
	}
	path := filepath.Join(real, name)
	if _, err := os.Lstat(path); err != nil {
		return // forgetRemoved handles it
	}
	if isPullList(name) {
		i.wait(name)
		i.lists.add(name)
		return
	}
	if isArchive(name) {
		i.wait(name)
		q.add(name)
		return
	}
	i.mu.Lock()
	delete(i.status, name)
	i.mu.Unlock()
	if problem := misnamed(path); problem != "" {
		i.setStatus(&Status{File: name, State: Failed, Error: problem})
		i.cfg.Log.Warn("file in the images folder is not imported", "file", path, "error", problem)
	}
}

func (i *Importer) wait(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.status[name]; s == nil || s.State != Importing && s.State != Pulling {
		i.status[name] = &Status{File: name, State: Waiting}
	}
}

// path returns the path of a file of the folder.
func (i *Importer) path(name string) string { return filepath.Join(i.cfg.Dir, name) }

func (i *Importer) setStatus(s *Status) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.status[s.File] = s
}

// update changes the status of an archive. It does nothing if the archive has none, because it was removed.
func (i *Importer) update(name string, change func(*Status)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.status[name]; s != nil {
		change(s)
	}
}

// importNamed imports one archive of the queue, and records and logs the result.
func (i *Importer) importNamed(ctx context.Context, c *client.Client, name string) {
	if ctx.Err() != nil {
		return
	}
	path := filepath.Join(i.cfg.Dir, name)
	start := time.Now()
	got, fresh, err := i.importOne(ctx, c, name)
	if ctx.Err() != nil {
		return
	}
	if _, gone := os.Lstat(path); errors.Is(gone, fs.ErrNotExist) {
		// It was removed while it waited or was being imported.
		i.forgetRemoved(ctx, c)
		return
	}
	names := slices.Sorted(maps.Keys(got.Images))
	took := time.Since(start).Round(time.Millisecond)
	i.update(name, func(s *Status) {
		s.Read, s.Images, s.Took = 0, names, took
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.State, s.Error = Waiting, "it is a link whose target does not exist"
		case err != nil:
			s.State, s.Error = Failed, err.Error()
		default:
			s.State, s.Error = Imported, ""
		}
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.cfg.Log.Info("image archive is a link whose target does not exist, waiting for it", "file", path)
	case err != nil:
		i.cfg.Log.Error("image archive not imported", "file", path, "images", names, "error", err)
	case fresh:
		i.cfg.Log.Info("images imported", "file", path, "images", names, "took", took)
	default:
		i.cfg.Log.Debug("images are imported already", "file", path)
	}
}

// importOne returns the images of an archive, which it imports if necessary. fresh reports that it read the archive.
func (i *Importer) importOne(ctx context.Context, c *client.Client, name string) (_ imported, fresh bool, err error) {
	f, id, err := open(filepath.Join(i.cfg.Dir, name))
	if err != nil {
		return imported{}, false, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	i.mu.Lock()
	before, ok := i.records[name]
	i.mu.Unlock()
	i.update(name, func(s *Status) { *s = Status{File: name, State: Importing, Size: id.Size} })

	if ok && before.identity == id {
		if all, err := present(ctx, c, before.imported); err != nil || all {
			if err == nil && before.Place != mounted.At(i.cfg.Dir) {
				err = i.record(ctx, c, name, before)
			}
			return before.imported, false, errors.Join(err, before.unusable())
		}
	} else if got, found := i.sameContent(f, id); found {
		// The file was copied, touched or renamed.
		if all, err := present(ctx, c, got); err != nil {
			return imported{}, false, err
		} else if all {
			return got, false, errors.Join(i.record(ctx, c, name, record{identity: id, imported: got}), got.unusable())
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return imported{}, false, err
	}
	i.cfg.Log.Info("importing images", "file", f.Name(), "MB", id.Size>>20)
	reported := time.Now()
	got, err := importFile(ctx, c, f, importOptions{progress: func(n int64) {
		i.update(name, func(s *Status) { s.Read = n })
		if time.Since(reported) > 10*time.Second {
			reported = time.Now()
			i.cfg.Log.Info("importing images", "file", f.Name(), "percent", n*100/max(id.Size, 1))
		}
	}})
	// The file changed meanwhile: record its images, so that they are unpinned later, without an identity, so that it
	// is read again.
	if now, again := identify(f); err != nil || again != nil || now != id {
		id = identity{}
	}
	if err != nil {
		if len(got.Images) > 0 {
			err = errors.Join(err, i.record(ctx, c, name, record{identity: id, imported: got}))
		}
		return imported{}, false, err
	}
	return got, true, errors.Join(i.record(ctx, c, name, record{identity: id, imported: got}), got.unusable())
}

// sameContent returns the record of an archive with the same content. It reads the file only if a recorded archive has
// its size.
func (i *Importer) sameContent(f io.Reader, id identity) (imported, bool) {
	i.mu.Lock()
	all := slices.Collect(maps.Values(i.records))
	i.mu.Unlock()
	if !slices.ContainsFunc(all, func(k record) bool { return k.Size == id.Size }) {
		return imported{}, false
	}
	sum, err := hashFile(f)
	if err != nil {
		return imported{}, false // the import reads it again and reports the error
	}
	n := slices.IndexFunc(all, func(k record) bool { return k.SHA256 == sum })
	if n < 0 {
		return imported{}, false
	}
	return all[n].imported, true
}

// record stores what an archive contains. First it unpins the images that an archive of this name contained before and
// no archive contains now, so that a kill in between repeats it.
func (i *Importer) record(ctx context.Context, c *client.Client, name string, k record) error {
	k.Place = mounted.At(i.cfg.Dir)
	i.mu.Lock()
	before := i.records[name]
	i.records[name] = k
	dropped := i.unclaimed(before.imported)
	i.mu.Unlock()
	i.unpin(ctx, c, dropped)
	i.mu.Lock()
	defer i.mu.Unlock()
	return saveState(i.cfg.State, i.records)
}

// unclaimed returns those images of an archive that no recorded archive contains. i.mu must be held.
func (i *Importer) unclaimed(got imported) map[string]string {
	out := maps.Clone(got.Images)
	for _, k := range i.records {
		maps.DeleteFunc(out, func(img, digest string) bool { return k.Images[img] == digest })
	}
	return out
}

func (i *Importer) unpin(ctx context.Context, c *client.Client, images map[string]string) {
	for img, digest := range images {
		if err := unpin(ctx, c, img, digest); err != nil {
			i.cfg.Log.Warn("unpin image", "image", img, "error", err)
		}
	}
}
