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
	"github.com/fsnotify/fsnotify"
)

// Config is what an Importer is made from.
type Config struct {
	Dir      string // the folder to follow
	Socket   string // containerd's
	State    string // file for notes; it belongs beside containerd's store
	Parallel int    // archives to import at once; 0 is 1
	Log      *slog.Logger
}

// State is where an archive is on its way.
type State string

// The states of an archive.
const (
	Waiting   State = "waiting"
	Importing State = "importing"
	Imported  State = "imported"
	Failed    State = "failed"
)

// Status is what is known of one archive.
type Status struct {
	File   string        `json:"file"`
	State  State         `json:"state"`
	Size   int64         `json:"size"`
	Read   int64         `json:"read,omitempty"`
	Images []string      `json:"images,omitempty"`
	Took   time.Duration `json:"took,omitempty"`
	Error  string        `json:"error,omitempty"`
}

// String is the status in a few words.
func (s Status) String() string {
	switch s.State {
	case Importing:
		return fmt.Sprintf("%s: importing, %d of %d MB", s.File, s.Read>>20, s.Size>>20)
	case Failed:
		return fmt.Sprintf("%s: %s", s.File, s.Error)
	}
	return fmt.Sprintf("%s: %s", s.File, s.State)
}

// Importer imports the archives of a folder, and those that appear in it.
type Importer struct {
	cfg Config

	mu     sync.Mutex
	status map[string]*Status
	known  map[string]known
}

// New returns an importer for a folder, which Run makes if it is not there.
func New(cfg Config) *Importer {
	cfg.Parallel = max(cfg.Parallel, 1)
	return &Importer{cfg: cfg, status: map[string]*Status{}}
}

// Status returns what is known of every archive in the folder, by name.
func (i *Importer) Status() []Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := make([]Status, 0, len(i.status))
	for _, name := range slices.Sorted(maps.Keys(i.status)) {
		out = append(out, *i.status[name])
	}
	return out
}

// quiet is how long an archive must be left alone before it is read.
const quiet = time.Second

// Run imports until ctx ends. It is ready at once: nothing waits for images but the pods that use them.
func (i *Importer) Run(ctx context.Context, ready func()) error {
	ready()
	if err := i.run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("import images: %w", err)
	}
	return nil
}

func (i *Importer) run(ctx context.Context) error {
	if err := os.MkdirAll(i.cfg.Dir, 0o755); err != nil {
		return err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // nothing is lost with a watch
	if err := w.Add(i.cfg.Dir); err != nil {
		return fmt.Errorf("watch %s: %w", i.cfg.Dir, err)
	}
	if i.known, err = loadState(i.cfg.State); err != nil {
		return err
	}
	c, err := Connect(i.cfg.Socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done

	q := newQueue()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer q.close()
	for range i.cfg.Parallel {
		workers.Go(func() {
			for name, ok := q.next(); ok; name, ok = q.next() {
				i.one(ctx, c, name)
				q.done(name)
			}
		})
	}
	if err := i.scan(q); err != nil {
		return err
	}
	i.forgetGone(ctx, c)

	changed := map[string]time.Time{} // when an archive was last touched
	tick := time.NewTimer(quiet)
	tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watch ended")
			}
			if name := filepath.Base(e.Name); isArchive(name) {
				if len(changed) == 0 {
					tick.Reset(quiet)
				}
				changed[name] = time.Now()
			}
		case err := <-w.Errors:
			i.cfg.Log.Warn("watch images", "error", err)
			if err := i.scan(q); err != nil {
				return err
			}
		case <-tick.C:
			// Only while something is changing.
			for name, at := range changed {
				if time.Since(at) < quiet {
					continue
				}
				delete(changed, name)
				if _, err := os.Stat(filepath.Join(i.cfg.Dir, name)); err == nil {
					i.wait(name)
					q.add(name)
				}
			}
			if len(changed) > 0 {
				tick.Reset(quiet / 4)
			} else {
				i.forgetGone(ctx, c)
			}
		}
	}
}

// scan puts every archive of the folder in the queue.
func (i *Importer) scan(q *queue) error {
	entries, err := os.ReadDir(i.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if isArchive(e.Name()) {
			i.wait(e.Name())
			q.add(e.Name())
		}
	}
	return nil
}

func (i *Importer) wait(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.status[name]; s == nil || s.State != Importing {
		i.status[name] = &Status{File: name, State: Waiting}
	}
}

// one imports one archive, and reports.
func (i *Importer) one(ctx context.Context, c *client.Client, name string) {
	if ctx.Err() != nil {
		return
	}
	begun := time.Now()
	got, fresh, err := i.importOne(ctx, c, name)
	if ctx.Err() != nil {
		return
	}
	names := slices.Sorted(maps.Keys(got.Images))
	took := time.Since(begun).Round(time.Millisecond)
	i.mu.Lock()
	s := i.status[name]
	s.Read, s.Images, s.Took = 0, names, took
	switch {
	case errors.Is(err, fs.ErrNotExist):
		delete(i.status, name)
	case err != nil:
		s.State, s.Error = Failed, err.Error()
	default:
		s.State = Imported
	}
	i.mu.Unlock()
	switch path := filepath.Join(i.cfg.Dir, name); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		i.cfg.Log.Error("image archive not imported", "file", path, "error", err)
	case fresh:
		i.cfg.Log.Info("images imported", "file", path, "images", names, "took", took)
	default:
		i.cfg.Log.Debug("images are known", "file", path)
	}
}

// importOne returns what is in an archive; fresh says that it had to be read for that.
func (i *Importer) importOne(ctx context.Context, c *client.Client, name string) (_ imported, fresh bool, err error) {
	f, id, err := open(filepath.Join(i.cfg.Dir, name))
	if err != nil {
		return imported{}, false, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	i.mu.Lock()
	i.status[name] = &Status{File: name, State: Importing, Size: id.Size}
	before, ok := i.known[name]
	i.mu.Unlock()

	if ok && before.identity == id {
		if all, err := present(ctx, c, before.Images); err != nil || all {
			return before.imported, false, err
		}
	} else if got, found := i.sameContent(f, id); found {
		// Copied, touched or renamed.
		if all, err := present(ctx, c, got.Images); err != nil {
			return imported{}, false, err
		} else if all {
			return got, false, i.note(name, known{id, got})
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return imported{}, false, err
	}
	i.cfg.Log.Info("importing images", "file", f.Name(), "MB", id.Size>>20)
	said := time.Now()
	got, err := importFile(ctx, c, f, importOptions{progress: func(n int64) {
		i.mu.Lock()
		i.status[name].Read = n
		i.mu.Unlock()
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			i.cfg.Log.Info("importing images", "file", f.Name(), "percent", n*100/max(id.Size, 1))
		}
	}})
	if err != nil {
		return imported{}, false, err
	}
	// Written to meanwhile: it is in the queue again, and must not pass for known.
	if now, err := identify(f); err != nil || now != id {
		return got, true, err
	}
	return got, true, i.note(name, known{id, got})
}

// sameContent finds a known archive with the same content. Only a file of the same size is read.
func (i *Importer) sameContent(f io.Reader, id identity) (imported, bool) {
	i.mu.Lock()
	all := slices.Collect(maps.Values(i.known))
	i.mu.Unlock()
	if !slices.ContainsFunc(all, func(k known) bool { return k.Size == id.Size }) {
		return imported{}, false
	}
	sum, err := hashFile(f)
	if err != nil {
		return imported{}, false // the import reads it again and says why
	}
	n := slices.IndexFunc(all, func(k known) bool { return k.SHA256 == sum })
	if n < 0 {
		return imported{}, false
	}
	return all[n].imported, true
}

func (i *Importer) note(name string, k known) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.known[name] = k
	return saveState(i.cfg.State, i.known)
}

// forgetGone unpins the images of archives that were taken out of the folder, unless another brings
// them too.
func (i *Importer) forgetGone(ctx context.Context, c *client.Client) {
	i.mu.Lock()
	defer i.mu.Unlock()
	keep := map[string]bool{}
	var gone []string
	for name, k := range i.known {
		if _, err := os.Stat(filepath.Join(i.cfg.Dir, name)); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, name)
			continue
		}
		for img := range k.Images {
			keep[img] = true
		}
	}
	for name := range i.status {
		if _, err := os.Stat(filepath.Join(i.cfg.Dir, name)); errors.Is(err, fs.ErrNotExist) {
			delete(i.status, name)
		}
	}
	if len(gone) == 0 {
		return
	}
	for _, name := range gone {
		for img, digest := range i.known[name].Images {
			if keep[img] {
				continue
			}
			if err := unpin(ctx, c, img, digest); err != nil {
				i.cfg.Log.Warn("image stays pinned", "image", img, "error", err)
			}
		}
		i.cfg.Log.Info("image archive is gone, its images are left to garbage collection", "file", name)
		delete(i.known, name)
	}
	if err := saveState(i.cfg.State, i.known); err != nil {
		i.cfg.Log.Warn("note what was imported", "error", err)
	}
}
