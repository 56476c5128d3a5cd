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

// State is the state of a manifest.
type State string

// States of a manifest.
const (
	Pending  State = "pending"
	Applied  State = "applied"
	Failing  State = "failing"  // is retried
	Invalid  State = "invalid"  // until the file changes; its applied objects stay
	Held     State = "held"     // objects no longer in the file stay: no proof that a person removed them
	Skipped  State = "skipped"  // not touched, because of a .skip file
	Disabled State = "disabled" // not applied, because of the setting disable
	Foreign  State = "foreign"  // only other servers have the file
	Removed  State = "removed"  // its file is gone and its objects are pruned
)

// FileStatus is the status of one manifest.
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
		c.event(id, rec, core.EventTypeWarning,
			map[State]string{Invalid: "InvalidManifest", Failing: "ApplyFailed", Held: "NotPruned"}[state], text)
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

// Status returns the status of each manifest, sorted by name.
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

// Section is the section of `umiak status` with the manifests, the servers that have them, and which of these have left
// the cluster.
func (c *Controller) Section(ctx context.Context) status.Section {
	s := status.Section{Name: "Manifests"}
	others := c.otherServers()
	left := map[string]bool{}
	for _, servers := range others {
		for name, h := range servers {
			if _, done := left[name]; !done {
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
		s.Rows = append(
			s.Rows, status.Row{Name: f.Name, State: string(f.State), Detail: detail + whose(others[f.Name], left)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	const maxRows = 20
	for i, p := range slices.Sorted(maps.Keys(c.overlooked)) {
		if i == maxRows {
			s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "overlooked",
				Detail: fmt.Sprintf("%d more, see the log", len(c.overlooked)-maxRows)})
			break
		}
		s.Rows = append(s.Rows, status.Row{Name: p, State: "overlooked", Detail: c.overlooked[p]})
	}
	switch {
	case c.scan != nil:
		s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "unreadable", Detail: c.scan.Error()})
	case c.gate.reason != "":
		s.Rows = append(s.Rows, status.Row{Name: c.cfg.Dir, State: "busy", Detail: strings.Join(c.look.busy, "; ") +
			"; nothing is pruned meanwhile"})
	}
	return s
}

// otherServers returns, by manifest, the other servers that have it.
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

// whose describes which other servers have a file.
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

// wayOut describes how to remove held objects without their file.
func wayOut(id string) string {
	return fmt.Sprintf(
		"its objects stay until it is there again, and go when it is removed then; to give them up, kubectl -n %s delete configmap %s, and they are yours to delete", recordNamespace, recordName(id))
}

// firstPass counts the embedded manifests that have not been tried yet.
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
