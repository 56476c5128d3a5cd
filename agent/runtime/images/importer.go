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
	Error  string        `json:"error,omitempty"` // also why an archive waits, and what of an imported one cannot be used
}

// String is the status in a few words.
func (s Status) String() string {
	switch s.State {
	case Importing:
		return fmt.Sprintf("%s: importing, %d of %d MB", s.File, s.Read>>20, s.Size>>20)
	case Failed:
		return fmt.Sprintf("%s: %s", s.File, s.Error)
	}
	if s.Error != "" {
		return fmt.Sprintf("%s: %s: %s", s.File, s.State, s.Error)
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
	mounts := mounted.Watch(ctx) // the only change of a path that inotify does not report
	defer func() {
		cancel()
		<-mounts.Ended //nolint:errcheck // told to end
	}()
	if i.known, err = loadState(i.cfg.State); err != nil {
		return err
	}
	c, err := Connect(i.cfg.Socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection, all is done
	if err := sweep(ctx, c); err != nil && ctx.Err() == nil {
		i.cfg.Log.Warn("what broken-off imports left is not removed", "error", err)
	}

	q := newQueue()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer q.close()
	defer cancel() // before they are waited for
	for range i.cfg.Parallel {
		workers.Go(func() {
			for name, ok := q.next(); ok; name, ok = q.next() {
				i.one(ctx, c, name)
				q.done(name)
			}
		})
	}
	workers.Go(func() { i.followStore(ctx, c, q) })
	i.scan(q, f.real)
	i.forgetGone(ctx, c)
	return i.follow(ctx, c, q, f, mounts)
}

// MakeFolder makes the folder for archives. A link that leads nowhere yet, to a disk that is not there, is left alone.
func MakeFolder(dir string) error {
	if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	return os.MkdirAll(dir, 0o700)
}

// follow puts archives into the queue as they come and change, until ctx ends.
func (i *Importer) follow(ctx context.Context, c *client.Client, q *queue, f *folder, mounts mounted.Changes) error {
	changed := map[string]time.Time{} // when an archive was last touched
	again := false                    // what is to be watched may have changed
	tick := time.NewTimer(quiet)
	tick.Stop()
	pending := func() bool { return len(changed) > 0 || again }
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
			again = again || moved
		case <-mounts.C:
			again = true
		case err := <-mounts.Ended:
			return err
		case err := <-f.w.Errors:
			// Events may be lost, so everything is looked at.
			i.cfg.Log.Warn("watch images", "error", err)
			again = true
			f.watched = nil
		case <-tick.C:
			// Only while something is changing. What is on the way may be busy, and is not waited for.
			if again {
				again = false
				anew, err := f.update()
				if err != nil {
					return err
				}
				if anew {
					i.scan(q, f.real)
				}
				i.forgetGone(ctx, c)
			}
			for name, at := range changed {
				if time.Since(at) >= quiet {
					delete(changed, name)
					i.look(q, f.real, name)
				}
			}
			if pending() {
				tick.Reset(quiet / 4)
			} else {
				i.forgetGone(ctx, c)
			}
			continue
		}
		if idle && pending() {
			tick.Reset(quiet)
		}
	}
}

// scan puts every archive of the folder in the queue. real is the folder without links, empty if it is not there.
func (i *Importer) scan(q *queue, real string) {
	if real == "" {
		i.setStatus(&Status{File: i.cfg.Dir, State: Failed, Error: "the folder is not there; archives are imported when it is back"})
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
		i.look(q, real, e.Name())
	}
}

// look puts one file of the folder in the queue if it is an archive. What looks like one and has another name is reported.
func (i *Importer) look(q *queue, real, name string) {
	if real == "" || isUnfinished(name) {
		return
	}
	path := filepath.Join(real, name)
	if _, err := os.Lstat(path); err != nil {
		return // forgetGone sees to it
	}
	if isArchive(name) {
		i.wait(name)
		q.add(name)
		return
	}
	i.mu.Lock()
	delete(i.status, name)
	i.mu.Unlock()
	if why := overlooked(path); why != "" {
		i.setStatus(&Status{File: name, State: Failed, Error: why})
		i.cfg.Log.Warn("file in the images folder is not imported", "file", path, "error", why)
	}
}

func (i *Importer) wait(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.status[name]; s == nil || s.State != Importing {
		i.status[name] = &Status{File: name, State: Waiting}
	}
}

func (i *Importer) setStatus(s *Status) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.status[s.File] = s
}

// update changes the status of an archive, if it has one: it goes when the archive is removed.
func (i *Importer) update(name string, change func(*Status)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s := i.status[name]; s != nil {
		change(s)
	}
}

// one imports one archive, and reports.
func (i *Importer) one(ctx context.Context, c *client.Client, name string) {
	if ctx.Err() != nil {
		return
	}
	path := filepath.Join(i.cfg.Dir, name)
	begun := time.Now()
	got, fresh, err := i.importOne(ctx, c, name)
	if ctx.Err() != nil {
		return
	}
	if _, gone := os.Lstat(path); errors.Is(gone, fs.ErrNotExist) {
		// Removed while it waited or was imported.
		i.forgetGone(ctx, c)
		return
	}
	names := slices.Sorted(maps.Keys(got.Images))
	took := time.Since(begun).Round(time.Millisecond)
	i.update(name, func(s *Status) {
		s.Read, s.Images, s.Took = 0, names, took
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.State, s.Error = Waiting, "a link to what is not there"
		case err != nil:
			s.State, s.Error = Failed, err.Error()
		default:
			s.State, s.Error = Imported, ""
		}
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.cfg.Log.Info("image archive is a link to what is not there, waiting for it", "file", path)
	case err != nil:
		i.cfg.Log.Error("image archive not imported", "file", path, "images", names, "error", err)
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
	before, ok := i.known[name]
	i.mu.Unlock()
	i.update(name, func(s *Status) { *s = Status{File: name, State: Importing, Size: id.Size} })

	if ok && before.identity == id {
		if all, err := present(ctx, c, before.imported); err != nil || all {
			if err == nil && before.Place != mounted.At(i.cfg.Dir) {
				err = i.note(ctx, c, name, before)
			}
			return before.imported, false, errors.Join(err, before.unusable())
		}
	} else if got, found := i.sameContent(f, id); found {
		// Copied, touched or renamed.
		if all, err := present(ctx, c, got); err != nil {
			return imported{}, false, err
		} else if all {
			return got, false, errors.Join(i.note(ctx, c, name, known{identity: id, imported: got}), got.unusable())
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return imported{}, false, err
	}
	i.cfg.Log.Info("importing images", "file", f.Name(), "MB", id.Size>>20)
	said := time.Now()
	got, err := importFile(ctx, c, f, importOptions{progress: func(n int64) {
		i.update(name, func(s *Status) { s.Read = n })
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			i.cfg.Log.Info("importing images", "file", f.Name(), "percent", n*100/max(id.Size, 1))
		}
	}})
	// Written to or removed meanwhile: it must not pass for known, but what it brought is recorded, to be unpinned some time.
	if now, again := identify(f); err != nil || again != nil || now != id {
		id = identity{}
	}
	if err != nil {
		if len(got.Images) > 0 {
			err = errors.Join(err, i.note(ctx, c, name, known{identity: id, imported: got}))
		}
		return imported{}, false, err
	}
	return got, true, errors.Join(i.note(ctx, c, name, known{identity: id, imported: got}), got.unusable())
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

// note records what came out of an archive. What an archive of this name brought before, and no archive brings now, is unpinned first: after a
// kill in between it is done again.
func (i *Importer) note(ctx context.Context, c *client.Client, name string, k known) error {
	k.Place = mounted.At(i.cfg.Dir)
	i.mu.Lock()
	before := i.known[name]
	i.known[name] = k
	dropped := i.unclaimed(before.imported)
	i.mu.Unlock()
	i.unpin(ctx, c, dropped)
	i.mu.Lock()
	defer i.mu.Unlock()
	return saveState(i.cfg.State, i.known)
}

// unclaimed is what of an archive's images no known archive brings. i.mu is held.
func (i *Importer) unclaimed(got imported) map[string]string {
	out := maps.Clone(got.Images)
	for _, k := range i.known {
		maps.DeleteFunc(out, func(img, digest string) bool { return k.Images[img] == digest })
	}
	return out
}

func (i *Importer) unpin(ctx context.Context, c *client.Client, images map[string]string) {
	for img, digest := range images {
		if err := unpin(ctx, c, img, digest); err != nil {
			i.cfg.Log.Warn("image stays pinned", "image", img, "error", err)
		}
	}
}
