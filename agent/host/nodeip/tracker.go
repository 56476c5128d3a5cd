package nodeip

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/umiak-io/umiak/agent/host/netlinkwatch"
	"github.com/umiak-io/umiak/internal/status"
)

// Part is the name of the part that runs a Tracker.
const Part = "addresses"

// Config says what is wanted.
type Config struct {
	Asked []netip.Addr // the setting node-ip; empty for addresses that the machine has
	Want  Families
	File  string // where the last choice is kept
	// Earlier are addresses that the node had when nothing was kept yet, as before an update from a release that kept none.
	Earlier []string
	Log     *slog.Logger
}

// Tracker knows the node's addresses.
type Tracker struct {
	cfg   Config
	asked []netip.Addr
	log   *slog.Logger

	mu      sync.Mutex
	want    Families
	choice  Choice
	taken   *Choice // with what the process runs; nil while nobody has taken any
	changed chan struct{}
}

// New makes the first choice.
func New(cfg Config) (*Tracker, error) {
	t := &Tracker{cfg: cfg, want: cfg.Want, log: cfg.Log.With("component", "addresses"), changed: make(chan struct{})}
	for _, a := range cfg.Asked {
		t.asked = append(t.asked, a.Unmap())
	}
	if _, err := t.look(); err != nil {
		return nil, err
	}
	return t, nil
}

// Now returns the choice of this moment and a channel that is closed when it is another one.
func (t *Tracker) Now() (Choice, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.choice, t.changed
}

// Take returns the choice as Now does, for use until the process ends: when it becomes another one, Run fails. The error
// is ErrNone while there is none.
func (t *Tracker) Take() (Choice, <-chan struct{}, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.choice.IPs) == 0 {
		return Choice{}, t.changed, ErrNone
	}
	if t.taken == nil {
		c := t.choice
		t.taken = &c
	}
	return *t.taken, t.changed, nil
}

// Wait blocks until there are addresses and the part's Run, or ctx, ends otherwise.
func (t *Tracker) Wait(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(t.Run(ctx, func() {})) }()
	for said := false; ; said = true {
		c, changed := t.Now()
		if len(c.IPs) > 0 {
			return nil
		}
		if !said {
			t.log.Warn("waiting for an address", "error", ErrNone)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Narrow restricts the choice to families, when a node that has joined knows which its cluster has.
func (t *Tracker) Narrow(f Families) error {
	t.mu.Lock()
	t.want = f
	if t.taken != nil && len(t.asked) == 0 {
		t.taken.IPs = t.taken.Of(f)
	}
	t.mu.Unlock()
	_, err := t.look()
	return err
}

// look makes the choice again and reports whether it is another one.
func (t *Tracker) look() (bool, error) {
	have, err := machine()
	if err != nil {
		return false, err
	}
	kept, err := t.kept()
	if err != nil {
		t.log.Warn("it is not known which addresses the node had", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := choose(t.asked, t.want, kept, have)
	if len(c.kept) > 0 {
		for _, k := range kept { // of the family that is not wanted now
			if !t.want.has(k.IP) {
				c.kept = append(c.kept, k)
			}
		}
		if err := save(t.cfg.File, c.kept); err != nil {
			t.log.Warn("the node's addresses cannot be written down: a boot without a cable would not know them", "error", err)
		}
	}
	if c.equal(t.choice) {
		return false, nil
	}
	t.choice = c
	close(t.changed)
	t.changed = make(chan struct{})
	return true, nil
}

// kept returns what was chosen last.
func (t *Tracker) kept() ([]address, error) {
	kept, err := load(t.cfg.File)
	if !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	for _, s := range t.cfg.Earlier {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("the node's earlier address: %w", err)
		}
		kept = append(kept, address{IP: ip.Unmap(), Routed: true}) // that is how it was chosen
	}
	return kept, nil
}

// Moved is the error of Run when the node has other addresses than those that were taken.
type Moved struct{ From, To []netip.Addr }

func (m *Moved) Error() string {
	return fmt.Sprintf("the node's address was %v and is %v now; kubelet and network take it at their start", m.From, m.To)
}

// other returns the error for a choice that is not the one that was taken.
func (t *Tracker) other() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken == nil || len(t.choice.IPs) == 0 || equal(t.taken.IPs, t.choice.IPs) {
		return nil
	}
	return &Moved{From: t.taken.IPs, To: t.choice.IPs}
}

func equal(a, b []netip.Addr) bool { return Choice{IPs: a}.equal(Choice{IPs: b}) }

// settle is how long changes are let come to rest: a renewed DHCP lease is often an address removed and added.
const settle = time.Second

// Run follows the kernel's changes until ctx ends. It fails with *Moved when the node has other addresses than those
// that were taken.
func (t *Tracker) Run(ctx context.Context, ready func()) error {
	return netlinkwatch.Follow(ctx, netlinkwatch.Kinds{Routes: true, Addrs: true}, func(m netlinkwatch.Messages) error {
		return t.follow(ctx, m, ready)
	})
}

// follow returns nil when the kernel's messages have broken off, as when there were too many, or ctx has ended.
func (t *Tracker) follow(ctx context.Context, m netlinkwatch.Messages, ready func()) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := true
	soon := func() {
		if !due {
			due = true
			timer.Reset(settle)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.Lost:
			return nil
		case a, ok := <-m.Addrs:
			if !ok {
				return nil
			}
			if !a.LinkAddress.IP.IsLinkLocalUnicast() { // as every pod's interface gets one
				soon()
			}
		case r, ok := <-m.Routes:
			if !ok {
				return nil
			}
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				soon() // others, as those to pods, say nothing of the node's address
			}
		case <-timer.C:
			due = false
			if changed, err := t.look(); err != nil {
				return err
			} else if changed {
				c, _ := t.Now()
				t.log.Info("addresses of the node", "addresses", c.IPs, "not on the machine", c.Missing)
			}
			if err := t.other(); err != nil {
				return err
			}
			ready()
		}
	}
}

// Rows are for `umiak status`.
func (t *Tracker) Rows() []status.Row {
	c, _ := t.Now()
	if len(c.IPs) == 0 {
		return []status.Row{{Name: "address", State: "none", Detail: ErrNone.Error()}}
	}
	row := status.Row{Name: "address", State: "present", Detail: fmt.Sprint(c.IPs)}
	if len(c.Missing) > 0 {
		row.State, row.Detail = "absent", fmt.Sprintf("%v: the machine does not have %v now (no cable, no DHCP yet, or a wrong node-ip); pods run, other nodes do not reach them", c.IPs, c.Missing)
	}
	return []status.Row{row}
}
