// Package tables puts back small nftables tables of umiak that somebody else has removed or emptied, as
// `nft flush ruleset` or a firewall's restart does.
//
// It listens to what the kernel tells of deletions and does nothing until then. agent/dataplane/proxy looks after its
// own table, element by element; this is for tables that are written whole by their owner.
package tables

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/google/nftables"
)

// Table is one table to look after.
type Table struct {
	Name string
	// Put writes the table as it should be, in one transaction, and says that it did. It may be called at any
	// time, also before the table has been written for the first time; then it does nothing.
	Put func() (bool, error)
	// Checks has Put find out by itself whether anything is missing, also when nothing has been heard: for tables
	// whose chains may be empty while they are whole.
	Checks bool
}

// Watch puts tables back. Every table has chains with rules in them while it is whole, unless it Checks.
type Watch struct {
	Tables []Table
	Log    *slog.Logger
}

// Run listens until ctx ends.
func (w Watch) Run(ctx context.Context, ready func()) error {
	for {
		if err := w.listen(ctx, ready); err != nil || ctx.Err() != nil {
			return err
		}
		// So much happened that the kernel could not tell it all (ENOBUFS), as when the proxy writes
		// ten thousand Services at once. Listen anew, which begins with a look.
	}
}

// listen returns nil when the kernel's messages have broken off or ctx has ended.
func (w Watch) listen(ctx context.Context, ready func()) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	// All events: google/nftables v0.3.0 tests its filter with the wrong precedence, so that any choice
	// but all lets nothing through.
	monitor := nftables.NewMonitor(nftables.WithMonitorEventBuffer(16))
	events, err := conn.AddGenerationalMonitor(monitor)
	if err != nil {
		return fmt.Errorf("listen for changes of nftables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = monitor.Close() })()
	w.repair() // what happened before anybody listened
	ready()
	for e := range events {
		if w.concerned(e.Changes) {
			w.repair()
		}
	}
	_ = monitor.Close() // it has ended by itself or been closed above
	return nil
}

// repair puts back what is not whole.
func (w Watch) repair() {
	for _, t := range w.Tables {
		whole, err := false, error(nil)
		if !t.Checks {
			whole, err = isWhole(t.Name)
		}
		if err == nil && !whole {
			var put bool
			if put, err = t.Put(); put && err == nil {
				w.Log.Warn("somebody removed our rules, they are back", "table", t.Name)
			}
		}
		if err != nil {
			w.Log.Error("cannot put rules back", "table", t.Name, "error", err)
		}
	}
}

// concerned says whether something of ours was deleted, or something could not be read.
func (w Watch) concerned(changes []*nftables.MonitorEvent) bool {
	for _, c := range changes {
		switch c.Type {
		case nftables.MonitorEventTypeDelTable, nftables.MonitorEventTypeDelChain, nftables.MonitorEventTypeDelRule, nftables.MonitorEventTypeOOB:
		default:
			continue
		}
		var t *nftables.Table
		switch d := c.Data.(type) {
		case *nftables.Table:
			t = d
		case *nftables.Chain:
			t = d.Table
		case *nftables.Rule:
			t = d.Table
		}
		if c.Error != nil {
			return true
		}
		for _, ours := range w.Tables {
			if t != nil && t.Name == ours.Name {
				return true
			}
		}
	}
	return false
}

// isWhole looks whether the table and its chains are there and none of them is empty.
func isWhole(name string) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	found := false
	for _, c := range chains {
		if c.Table.Name != name {
			continue
		}
		found = true
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return false, fmt.Errorf("list nftables rules: %w", err)
		}
		if len(rules) == 0 {
			return false, nil
		}
	}
	return found, nil
}
