package reconcile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/nettest"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own: the loops run on threads of their own.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	eventually.Nil(t, what, func() error {
		if cond() {
			return nil
		}
		return errors.New(nettest.NFT(t, "list ruleset"))
	})
}

// TestTablesAreRestored: whatever a stranger does to a table, it is restored, and each repair is logged.
func TestTablesAreRestored(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	small := ruleset.Table{
		Family: ruleset.Inet, Name: "umiak-small",
		Sets:  []ruleset.SetSpec{{Name: "nodes", Key: []ruleset.Field{ruleset.Addr4}}},
		Elems: []ruleset.Elem{{Set: "nodes", Key: "\x0a\x00\x00\x01"}},
		Chains: []ruleset.Chain{{
			Name: "in", Hook: &ruleset.Hook{Type: "filter", Name: "input"}, Rules: []ruleset.Rule{{ruleset.Count{}}},
		}},
	}
	var log bytes.Buffer // read when the tables are not looked after any more
	var repairs atomic.Int32
	ts := NewTables(slog.New(slog.NewTextHandler(&log, nil)), []string{small.Name, "umiak-unknown"},
		Shared{Name: "umiak-shared", Repair: func(context.Context, *netfilter.Conn) (bool, error) {
			repairs.Add(1)
			return false, nil
		}})
	if err := ts.Set(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	want := nettest.NFT(t, "list table inet "+small.Name)
	if !strings.Contains(want, "10.0.0.1") || !strings.Contains(want, "counter") {
		t.Fatal(want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- ts.Run(ctx, func() { close(up) }) }()
	<-up
	if n := repairs.Load(); n != 1 {
		t.Errorf("the shared table was looked at %d times before anybody changed it", n)
	}
	whole := func() bool { return strings.Contains(nettest.NFT(t, "list ruleset"), want[:len(want)-1]) }
	strangers := []string{"flush ruleset", "delete table inet umiak-small", "flush table inet umiak-small",
		"flush set inet umiak-small nodes", "insert rule inet umiak-small in drop",
		"add element inet umiak-small nodes { 10.0.0.2 }", "add chain inet umiak-small more"}
	for _, cmd := range strangers {
		nettest.NFT(t, cmd)
		until(t, "the table after "+cmd, whole)
	}
	// What is added to a shared table is the CNI plugin's, what is removed may be a stranger's.
	nettest.NFT(t, "add table inet umiak-shared")
	before := repairs.Load()
	nettest.NFT(t, "delete table inet umiak-shared")
	until(t, "a look at the shared table", func() bool { return repairs.Load() > before })
	// Another desired table is no stranger's change.
	small.Elems = nil
	if err := ts.Set(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if err := ts.Set(t.Context(), ruleset.Table{Name: "umiak-other"}); err == nil {
		t.Error("a table that nobody restores was written")
	}
	if err := ts.Remove(t.Context(), small.Name); err != nil {
		t.Fatal(err)
	}
	if out := nettest.NFT(t, "list ruleset"); strings.Contains(out, small.Name) {
		t.Error(out)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "it is repaired"); n != len(strangers) {
		t.Errorf("%d repairs of %d were logged:\n%s", n, len(strangers), log.String())
	}
}

// TestAStrangerThatFightsDoesNotMakeItSpin: each repair of a table that is removed at once waits longer.
func TestAStrangerThatFightsDoesNotMakeItSpin(t *testing.T) {
	var writes atomic.Int32
	var l *Loop
	l = New(Config{Table: "t", Log: slog.New(slog.DiscardHandler), Write: func(context.Context, bool) (bool, error) {
		if writes.Add(1) == 6 {
			return true, ErrDone
		}
		l.Touched() // the stranger
		return true, nil
	}})
	begun := time.Now()
	if err := l.Run(t.Context(), func() {}); err != nil {
		t.Fatal(err)
	}
	if took, least := time.Since(begun), (20+40+80+160+320)*time.Millisecond; took < least {
		t.Errorf("five repairs within %v, sooner than %v", took, least)
	}
}

// TestLoop: changes are written, an error is followed by a full write, and ErrDone ends the loop.
func TestLoop(t *testing.T) {
	var got []bool // whether each write was full
	var l *Loop
	l = New(Config{Table: "t", Log: slog.New(slog.DiscardHandler),
		Write: func(_ context.Context, full bool) (bool, error) {
			got = append(got, full)
			switch len(got) {
			case 1:
				l.Changed()
			case 2:
				l.Urgent()
				return false, os.ErrInvalid
			case 4:
				return false, ErrDone
			default:
				l.Urgent()
			}
			return false, nil
		}})
	ready := 0
	if err := l.Run(t.Context(), func() { ready++ }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []bool{true, false, true, false}) || ready != 2 {
		t.Errorf("wrote %v, ready %d times", got, ready)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(os.ErrClosed)
	refuse := func(ctx context.Context, _ bool) (bool, error) { return false, ctx.Err() }
	if err := New(Config{Log: slog.New(slog.DiscardHandler), Write: refuse}).Run(ctx, func() {}); err != os.ErrClosed {
		t.Errorf("ended with %v", err)
	}
}
