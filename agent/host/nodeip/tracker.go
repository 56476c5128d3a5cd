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

// Config describes a Tracker.
type Config struct {
	Asked []Asked // the setting node-ip; empty for addresses that the machine has
	Want  Families
	File  string // stores the last choice
	// Earlier are the node's addresses from before there was a File, for updates from releases that did not write it.
	Earlier []string
	Log     *slog.Logger
}

// Tracker tracks the node's addresses.
type Tracker struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	want    Families
	choice  Choice
	taken   *Choice // the addresses that the process uses; nil before Take
	changed chan struct{}
}

// New makes the first choice.
func New(cfg Config) (*Tracker, error) {
	t := &Tracker{cfg: cfg, want: cfg.Want, log: cfg.Log.With("component", "addresses"), changed: make(chan struct{})}
	if _, err := t.refresh(); err != nil {
		return nil, err
	}
	return t, nil
}

// Now returns the current choice and a channel that is closed when it changes.
func (t *Tracker) Now() (Choice, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.choice, t.changed
}

// Take returns the choice like Now, for use until the process ends: when it changes, Run fails. The error is ErrNone
// while there are no addresses.
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

// Wait runs the Tracker and blocks until there are addresses, Run fails, or ctx ends.
func (t *Tracker) Wait(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(t.Run(ctx, func() {})) }()
	for logged := false; ; logged = true {
		c, changed := t.Now()
		if len(c.IPs) > 0 {
			return nil
		}
		if !logged {
			t.log.Warn("waiting for an address", "error", ErrNone)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Narrow restricts the choice to the cluster's families, once a node that has joined knows them.
func (t *Tracker) Narrow(f Families) error {
	t.mu.Lock()
	t.want = f
	if t.taken != nil && len(addresses(t.cfg.Asked)) == 0 {
		t.taken.IPs = t.taken.Of(f)
	}
	t.mu.Unlock()
	_, err := t.refresh()
	return err
}

// refresh makes the choice again and reports whether it has changed.
func (t *Tracker) refresh() (bool, error) {
	have, err := machine()
	if err != nil {
		return false, err
	}
	stored, err := t.stored()
	if err != nil {
		t.log.Warn("cannot read the node's earlier addresses", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := choose(t.cfg.Asked, t.want, stored, have)
	if len(c.stored) > 0 {
		for _, k := range stored { // keep the other family
			if !t.want.has(k.IP) {
				c.stored = append(c.stored, k)
			}
		}
		if err := save(t.cfg.File, c.stored); err != nil {
			t.log.Warn("cannot store the node's addresses: after a boot without a network cable it would have none",
				"error", err)
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

// stored returns the last choice.
func (t *Tracker) stored() ([]address, error) {
	list, err := load(t.cfg.File)
	if !errors.Is(err, fs.ErrNotExist) {
		return list, err
	}
	for _, s := range t.cfg.Earlier {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("the node's earlier address: %w", err)
		}
		list = append(list, address{IP: ip.Unmap(), Routed: true}) // older releases chose the default route's
	}
	return list, nil
}

// Moved is Run's error when the node's addresses differ from those that were taken.
type Moved struct{ From, To []netip.Addr }

func (m *Moved) Error() string {
	return fmt.Sprintf("the node's address changed from %v to %v; kubelet and network read it only when they start",
		m.From, m.To)
}

// moved returns a *Moved error if the choice differs from the one that was taken.
func (t *Tracker) moved() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken == nil || len(t.choice.IPs) == 0 || equal(t.taken.IPs, t.choice.IPs) {
		return nil
	}
	return &Moved{From: t.taken.IPs, To: t.choice.IPs}
}

func equal(a, b []netip.Addr) bool { return Choice{IPs: a}.equal(Choice{IPs: b}) }

// settleTime is the delay between a change and the next choice: renewing a DHCP lease often removes and adds the
// address.
const settleTime = time.Second

// Run follows the kernel's changes until ctx ends. It fails with *Moved when the addresses differ from those that were
// taken.
func (t *Tracker) Run(ctx context.Context, ready func()) error {
	return netlinkwatch.Follow(ctx, netlinkwatch.Kinds{Routes: true, Addrs: true}, func(m netlinkwatch.Messages) error {
		return t.follow(ctx, m, ready)
	})
}

// follow handles one subscription. It returns nil when messages were lost or ctx has ended.
func (t *Tracker) follow(ctx context.Context, m netlinkwatch.Messages, ready func()) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := true
	soon := func() {
		if !due {
			due = true
			timer.Reset(settleTime)
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
			if !a.LinkAddress.IP.IsLinkLocalUnicast() { // every pod's interface gets one
				soon()
			}
		case r, ok := <-m.Routes:
			if !ok {
				return nil
			}
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				soon() // other routes, such as those to pods, are irrelevant
			}
		case <-timer.C:
			due = false
			if changed, err := t.refresh(); err != nil {
				return err
			} else if changed {
				c, _ := t.Now()
				t.log.Info("addresses of the node", "addresses", c.IPs, "not on the machine", c.Missing)
			}
			if err := t.moved(); err != nil {
				return err
			}
			ready()
		}
	}
}

// Rows are the rows of `umiak status` with the node's addresses.
func (t *Tracker) Rows() []status.Row {
	c, _ := t.Now()
	if len(c.IPs) == 0 {
		return []status.Row{{Name: "address", State: "none", Detail: ErrNone.Error()}}
	}
	row := status.Row{Name: "address", State: "present", Detail: fmt.Sprint(c.IPs)}
	if len(c.Missing) > 0 {
		row.State, row.Detail = "absent", fmt.Sprintf(
			"%v: the machine does not have %v now (no cable, no DHCP yet, or a wrong node-ip); pods run, other nodes do not reach them", c.IPs, c.Missing)
	}
	return []status.Row{row}
}
