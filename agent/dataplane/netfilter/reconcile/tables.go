package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Tables writes small tables and restores them when another program has removed or changed them.
type Tables struct {
	names  []string
	whole  map[string]*whole
	loops  map[string]*Loop
	shared map[string]bool
	mu     sync.Mutex      // guards conn
	conn   *netfilter.Conn // nil until it is needed
}

// whole is a table that its owner writes as a whole.
type whole struct {
	mu   sync.Mutex     // held while the table is written
	want *ruleset.Table // nil while there is none
}

// Shared is a table that the CNI plugin writes as well.
type Shared struct {
	Name string
	// Repair restores what was removed from the table, through conn, and reports whether anything was.
	Repair func(ctx context.Context, conn *netfilter.Conn) (bool, error)
}

// NewTables returns tables that their owners write as a whole, by name, and shared ones. The kernel is not touched yet.
func NewTables(log *slog.Logger, names []string, shared ...Shared) *Tables {
	t := &Tables{whole: map[string]*whole{}, loops: map[string]*Loop{}, shared: map[string]bool{}}
	for _, name := range names {
		w := &whole{}
		t.whole[name] = w
		t.add(name, log, func(ctx context.Context, _ bool) (bool, error) { return t.write(ctx, w) })
	}
	for _, s := range shared {
		t.shared[s.Name] = true
		t.add(s.Name, log, func(ctx context.Context, _ bool) (bool, error) {
			conn, err := t.dial()
			if err != nil {
				return false, err
			}
			repaired, err := s.Repair(ctx, conn)
			if err != nil {
				// Not tried again before the next change: it may be about one pod of many.
				log.Error("cannot restore a table", "table", s.Name, "error", err)
			}
			return repaired, nil
		})
	}
	return t
}

func (t *Tables) add(name string, log *slog.Logger, write func(context.Context, bool) (bool, error)) {
	t.names = append(t.names, name)
	t.loops[name] = New(Config{Table: name, Log: log, Write: write})
}

// dial returns the socket of all tables: the Watcher recognizes changes through it as umiak's.
func (t *Tables) dial() (*netfilter.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		conn, err := netfilter.Dial()
		if err != nil {
			return nil, err
		}
		t.conn = conn
	}
	return t.conn, nil
}

// Set writes a table, which is restored from now on. A table that cannot be written is not restored either.
func (t *Tables) Set(ctx context.Context, want ruleset.Table) error {
	w := t.whole[want.Name]
	if w == nil {
		return fmt.Errorf("write nftables table %s: it is not among the tables that are restored", want.Name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want = &want
	_, err := t.writeLocked(ctx, w)
	if err != nil {
		w.want = nil
	}
	return err
}

// Remove deletes a table, if it exists, and does not restore it.
func (t *Tables) Remove(ctx context.Context, name string) error {
	w := t.whole[name]
	if w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.want = nil
	}
	conn, err := t.dial()
	if err != nil {
		return err
	}
	return conn.Remove(ctx, name)
}

func (t *Tables) write(ctx context.Context, w *whole) (repaired bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return t.writeLocked(ctx, w)
}

func (t *Tables) writeLocked(ctx context.Context, w *whole) (repaired bool, err error) {
	if w.want == nil {
		return false, nil
	}
	conn, err := t.dial()
	if err != nil {
		return false, err
	}
	table := netfilter.Table{Conn: conn, Family: w.want.Family, Name: w.want.Name}
	r, err := table.Reconcile(ctx, netfilter.Static(*w.want))
	return r != netfilter.Result{}, err
}

// Run restores the tables until ctx ends. It is ready when all have been compared once.
func (t *Tables) Run(ctx context.Context, ready func()) error {
	conn, err := t.dial()
	if err != nil {
		return err
	}
	watcher, err := netfilter.NewWatcher(conn, t.names...)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var compared atomic.Int32
	for _, l := range t.loops {
		first := sync.OnceFunc(func() {
			if int(compared.Add(1)) == len(t.loops) {
				ready()
			}
		})
		wg.Go(func() {
			if err := l.Run(ctx, first); err != nil {
				cancel(err)
			}
		})
	}
	err = watcher.Run(ctx, t.touched)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// touched wakes the loop of a table, or all loops if the table is unknown. Additions to a shared table are ignored: the
// CNI plugin makes them.
func (t *Tables) touched(c netfilter.Touch) {
	for name, l := range t.loops {
		if (c.Table == "" || c.Table == name) && (c.Removed || !t.shared[name]) {
			l.Touched()
		}
	}
}
