package addons

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/server/addons/manifest"
)

// State is how a manifest stands.
type State string

// The states of a manifest.
const (
	Pending  State = "pending"
	Applied  State = "applied"
	Failing  State = "failing"  // tried again by itself
	Invalid  State = "invalid"  // until the file changes; what it applied before stays
	Held     State = "held"     // what it no longer names stays: nothing proves that a person took it away
	Skipped  State = "skipped"  // left as it is, because of a .skip file
	Disabled State = "disabled" // removed, because of --disable
	Foreign  State = "foreign"  // a file of other servers
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
	case Invalid, Failing, Held:
		c.log.Warn("manifest", "name", name, "state", state, "error", err)
		c.event(id, rec, core.EventTypeWarning, map[State]string{Invalid: "InvalidManifest", Failing: "ApplyFailed", Held: "NotPruned"}[state], text)
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

// Section is Status for `umiak status`. A file of other servers has their names, and says which of them have left.
func (c *Controller) Section(ctx context.Context) status.Section {
	s := status.Section{Name: "Manifests"}
	others := c.otherServers()
	left := map[string]bool{}
	for _, servers := range others {
		for name, h := range servers {
			if _, asked := left[name]; !asked {
				gone, err := c.cfg.Left(ctx, name, h.Node)
				left[name] = err == nil && gone
			}
		}
	}
	for _, f := range c.Status() {
		detail := fmt.Sprintf("%d objects", f.Objects)
		if f.Error != "" {
			detail = strings.ReplaceAll(f.Error, "\n", "; ")
		}
		s.Rows = append(s.Rows, status.Row{Name: f.Name, State: string(f.State), Detail: detail + whose(others[f.Name], left)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	const most = 20
	for i, p := range slices.Sorted(maps.Keys(c.overlooked)) {
		if i == most {
			s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "overlooked", Detail: fmt.Sprintf("%d more, see the log", len(c.overlooked)-most)})
			break
		}
		s.Rows = append(s.Rows, status.Row{Name: p, State: "overlooked", Detail: c.overlooked[p]})
	}
	switch {
	case c.scan != nil:
		s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "unreadable", Detail: c.scan.Error()})
	case c.gate.reason != "":
		s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "busy", Detail: strings.Join(c.look.busy, "; ") + "; nothing is pruned meanwhile"})
	}
	return s
}

// otherServers are the servers, other than this one, that have each manifest.
func (c *Controller) otherServers() map[string]map[string]holding {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]map[string]holding{}
	for _, it := range c.items {
		if it.rec == nil {
			continue
		}
		servers := maps.Clone(it.rec.Servers)
		delete(servers, c.cfg.Server)
		out[it.status.Name] = servers
	}
	return out
}

// whose says which other servers have a file.
func whose(servers map[string]holding, left map[string]bool) string {
	text := ""
	for _, n := range slices.Sorted(maps.Keys(servers)) {
		text += ", file of server " + n
		if left[n] {
			text += ", which has left the cluster: its objects stay until the file is put on a server and removed there"
		}
	}
	return text
}

// wayOut says how to get rid of objects that are held, without their file.
func wayOut(id string) string {
	return fmt.Sprintf("its objects stay until it is there again, and go when it is removed then; to give them up, kubectl -n %s delete configmap %s, and they are yours to delete", recordNamespace, recordName(id))
}

// firstPass counts down the embedded manifests.
type firstPass struct {
	mu    sync.Mutex
	left  map[string]bool
	ready func()
}

func newFirstPass(embedded map[string]manifest.File) *firstPass {
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
