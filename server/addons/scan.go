package addons

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/umiak-io/umiak/internal/mounted"
	"github.com/umiak-io/umiak/server/addons/manifest"
)

const (
	quietEvent = 100 * time.Millisecond
	// grace is how long the folder must have been quiet before anything is pruned: git and some editors replace a file
	// by removing it and writing a new one.
	grace = 2 * time.Second
	// lookMax and lookMaxWriting bound the pause between scans for changes without an event: a file that is closed, a
	// disk that is mounted.
	lookMax, lookMaxWriting = 30 * time.Second, 5 * time.Second
	// lookUnwatched is the pause between scans if the folder cannot be watched.
	lookUnwatched = 5 * time.Second
)

// gate is whether objects that are in no file may be pruned: while the folder changes, they may reappear in another
// file.
type gate struct {
	open   bool
	reason string // why it stays closed; "" at first, or while it is open
}

// look is the result of the last scan of the folder as a whole.
type look struct {
	changed   time.Time
	busy      []string
	busySince time.Time
	pause     time.Duration // until the next scan for changes without an event
}

// rescan reads the folder and queues changed manifests. It returns the time until the next scan, 0 if only an event
// triggers it.
func (c *Controller) rescan(embedded map[string]manifest.File, w *fsnotify.Watcher) time.Duration {
	now := time.Now()
	scan, err := c.folder.Read(now)
	fresh := err == nil && c.follow(w, scan.Dirs)
	c.links = scan.Links
	c.overlook(scan.Overlooked)
	places := c.places()
	identity := manifest.Identity(c.cfg.Dir)
	c.mu.Lock()
	if err != nil && c.scan == nil {
		// Unlike for an empty folder, nothing is pruned.
		c.log.Error("the manifests folder cannot be read, what it held stays applied", "error", err)
	}
	c.scan = err
	if err == nil && !scan.Empty {
		c.full = identity
	}
	// An empty folder proves that a person emptied it only if its files were seen before.
	lost := err == nil && scan.Empty && c.full != identity
	present, changed := map[string]bool{}, false
	for name := range scan.Unsettled {
		present[manifest.ID(name)] = true
	}
	for _, f := range manifest.Merge(embedded, scan) {
		it := c.items[f.ID]
		if present[f.ID] || err != nil && it != nil && it.file.Origin != manifest.Embedded {
			continue
		}
		present[f.ID] = true
		changed = c.take(f) || changed
	}
	for id, it := range c.items {
		if !present[id] {
			changed = c.miss(id, it, scan, places, lost) || changed
		}
	}
	c.claim()
	c.judge(now, scan, changed)
	again := c.again(now)
	if fresh { // files may have been added between reading and watching
		again = manifest.Settle
	}
	var replaced []string
	for _, f := range embedded {
		if it := c.items[f.ID]; it == nil || it.file.Origin != manifest.Embedded {
			replaced = append(replaced, f.ID)
		}
	}
	c.mu.Unlock()
	for _, id := range replaced {
		c.first.done(id) // a user's file replaces it, which may stay unreadable
	}
	return again
}

// follow watches the folders, and reports whether one is newly watched. A folder that has replaced another one at the
// same path is watched again.
func (c *Controller) follow(w *fsnotify.Watcher, dirs map[string]string) (fresh bool) {
	if c.unwatched {
		return false
	}
	listed := w.WatchList()
	for d, identity := range dirs {
		if c.dirs[d] == identity && slices.Contains(listed, d) {
			continue
		}
		if slices.Contains(listed, d) {
			_ = w.Remove(d) // the replaced folder
		}
		if err := w.Add(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("watching the manifests folder", "folder", d, "error", err)
		}
		fresh = true
	}
	c.dirs = dirs
	return fresh
}

// overlook records and logs files that look like manifests and are not applied. An unreadable folder has none.
func (c *Controller) overlook(files map[string]string) {
	c.mu.Lock()
	was := c.overlooked
	c.overlooked = files
	c.mu.Unlock()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		if was[p] != files[p] {
			c.log.Warn("file in the manifests folder is not applied", "file", p, "error", files[p])
		}
	}
}

// affected reports whether a mount or unmount may concern the folder. Every pod causes mounts.
func (c *Controller) affected() bool {
	for d, identity := range c.dirs {
		if manifest.Identity(d) != identity {
			return true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links || c.faulty()
}

// faulty reports whether a fault prevents something, so that its end, which may cause no event, must be polled. c.mu
// must be held.
func (c *Controller) faulty() bool {
	if len(c.look.busy) > 0 {
		return true
	}
	for _, it := range c.items {
		if it.held != "" || errors.Is(it.err, manifest.ErrFault) {
			return true
		}
	}
	return false
}

// places reports, for the folders of all recorded files, whether they are on the same file system as before. File
// systems may answer slowly, so c.mu must not be held.
func (c *Controller) places() map[holding]bool {
	out := map[holding]bool{}
	c.mu.Lock()
	for _, it := range c.items {
		if it.rec != nil {
			if h, mine := it.rec.Servers[c.cfg.Server]; mine {
				out[h.place()] = false
			}
		}
	}
	c.mu.Unlock()
	for h := range out {
		out[h] = mounted.Still(h.Path, h.Place)
	}
	return out
}

// miss records that a manifest has no file, and reports whether that is new. lost means that a fault may have emptied
// the folder. c.mu must be held.
func (c *Controller) miss(id string, it *item, scan manifest.Scan, places map[holding]bool, lost bool) bool {
	held, skip := "", scan.Skips[it.file.Name]
	user := it.file.Origin != manifest.Embedded
	if c.scan != nil && user {
		if !it.gone {
			return false // stays applied from memory
		}
		held, skip = c.scan.Error(), it.file.Skip
	} else if user && it.rec != nil {
		h, mine := it.rec.Servers[c.cfg.Server]
		behind := scan.Behind(it.file.Name)
		switch {
		case mine && behind != "":
			held = fmt.Sprintf("its file %s is not there: %s; to have its objects pruned, remove the link", h.Path,
				behind)
		case mine && !places[h.place()]:
			held = fmt.Sprintf(
				"its file %s is not there, and the file system that it was on is not mounted there either; %s", h.Path,
				wayOut(id))
		case mine && lost:
			held = fmt.Sprintf(
				"its file %s is not there, nor any other: the folder was empty when umiak started, or is a new one, and may have lost its files; "+
					"put them back, or any file, as by touch %s, to have the objects pruned", h.Path,
				filepath.Join(c.cfg.Dir, ".keep"))
		}
	}
	if it.gone && it.missed && it.held == held && it.file.Skip == skip {
		return false
	}
	it.gone, it.missed, it.held, it.objs, it.err, it.text = true, true, held, nil, nil, nil
	it.disabled = manifest.Disabled(it.file.Name, c.cfg.Disable)
	it.file.Skip = skip
	c.queue.Add(id)
	return true
}

// take compares a file with its item, and reports whether it differs. c.mu must be held.
func (c *Controller) take(f manifest.File) bool {
	it := c.items[f.ID]
	disabled := manifest.Disabled(f.Name, c.cfg.Disable)
	if it != nil && !it.gone && it.file.Same(f) {
		return false
	}
	if it == nil {
		it = &item{status: FileStatus{State: Pending, Since: time.Now()}}
		c.items[f.ID] = it
	}
	it.objs, it.err, it.text = nil, f.Err, nil
	if it.err == nil && !disabled && !f.Skip {
		if it.objs, it.err = manifest.Decode(f.Data); it.err != nil {
			it.text = f.Data
		}
	}
	f.Data = nil // decoded; free the text
	it.file, it.gone, it.missed, it.held, it.disabled = f, false, false, "", disabled
	it.status.Name, it.status.Origin = f.Name, f.Origin
	c.queue.Forget(f.ID)
	c.queue.Add(f.ID)
	return true
}

// judge decides whether anything may be pruned, and wakes the manifests that wait for it. c.mu must be held.
func (c *Controller) judge(now time.Time, scan manifest.Scan, changed bool) {
	var busy []string
	if c.scan != nil {
		busy = append(busy, c.scan.Error())
	}
	busy = append(busy, slices.Sorted(maps.Values(scan.Unsettled))...)
	busy = append(busy, scan.Busy...)
	for _, it := range c.items {
		// It may be a renamed file that is missing elsewhere.
		if !it.gone && it.rec.unread() && errors.Is(it.err, manifest.ErrFault) {
			busy = append(busy, it.file.Origin+" "+it.err.Error())
		}
	}
	if changed || !scan.Changed.Equal(c.look.changed) || len(busy) != len(c.look.busy) {
		c.look.pause = 0
	}
	limit := lookMax
	if len(scan.Unsettled) > 0 {
		limit = lookMaxWriting
	}
	c.look.pause, c.look.changed = min(max(2*c.look.pause, manifest.Settle), limit), scan.Changed
	if c.look.busy = busy; len(busy) == 0 {
		c.look.busySince = time.Time{}
	} else if c.look.busySince.IsZero() {
		c.look.busySince = now
	}
	next := gate{open: len(busy) == 0 && now.Sub(scan.Changed) >= grace}
	if len(busy) > 0 && now.Sub(c.look.busySince) >= grace {
		next.reason = busy[0]
	}
	if next == c.gate && !changed {
		return
	}
	c.gate = next
	for id, it := range c.items {
		if it.waits {
			it.waits = false
			c.queue.Add(id)
		}
	}
}

// again returns the time until the folder must be read again, 0 if an event will trigger it. c.mu must be held.
func (c *Controller) again(now time.Time) time.Duration {
	waits := false
	for _, it := range c.items {
		waits = waits || it.waits
	}
	var all []time.Duration
	if waits && len(c.look.busy) == 0 && !c.gate.open {
		all = append(all, max(c.look.changed.Add(grace).Sub(now), quietEvent))
	}
	if c.faulty() {
		all = append(all, c.look.pause)
	}
	if c.unwatched {
		all = append(all, lookUnwatched)
	}
	if len(all) == 0 {
		return 0
	}
	return slices.Min(all)
}

// mayPrune reports whether objects that a manifest no longer names may be pruned. If not, the manifest is queued again
// when that changes; reason is "" for a short delay.
func (c *Controller) mayPrune(id string) (ok bool, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[id]
	if it == nil {
		return false, ""
	}
	if it.held == "" && c.gate.open {
		return true, ""
	}
	it.waits = true
	c.poke()
	if it.held != "" {
		return false, it.held
	}
	return false, c.gate.reason
}

// awaits makes a change in the folder queue the manifest again.
func (c *Controller) awaits(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.waits = true
	}
}

// poke makes Run recompute when the folder must be read again.
func (c *Controller) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// claim assigns each object to a manifest: the first by name. Manifests that lose or gain an object are queued. c.mu
// must be held.
func (c *Controller) claim() {
	ids := make([]string, 0, len(c.items))
	for id := range c.items {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return strings.Compare(c.items[a].file.Name, c.items[b].file.Name) })
	c.scopesFromRecords()
	owner := map[manifest.Key]string{}
	for _, id := range ids {
		for _, o := range c.items[id].objs {
			k := c.keyOf(o)
			if _, taken := owner[k]; !taken {
				owner[k] = id
			}
		}
		// An invalid or skipped file keeps its applied objects.
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

// needed returns why an object that no file names must stay, "" if it need not.
func (c *Controller) needed(id string, e entry) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other, it := range c.items {
		if other != id && manifest.Mentions(it.text, e.Kind, e.Name) {
			return fmt.Sprintf("%s, which cannot be used as it is, has its name in it", it.file.Origin)
		}
	}
	if e.Kind != "Namespace" || e.gvk().Group != "" {
		return ""
	}
	for k, other := range c.owner {
		if other != id && k.Namespace == e.Name {
			return fmt.Sprintf("manifest %s has objects in it", c.items[other].file.Name)
		}
	}
	return ""
}
