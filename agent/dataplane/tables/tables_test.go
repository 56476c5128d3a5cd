package tables_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"

	"github.com/umiak-io/umiak/agent/dataplane/tables"
)

// put writes a table with one chain and one rule.
func put(t *testing.T, name string) {
	c, err := nftables.New()
	if err != nil {
		t.Error(err)
		return
	}
	tab := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	c.AddTable(tab)
	c.DelTable(tab)
	c.AddTable(tab)
	ch := c.AddChain(&nftables.Chain{Name: "postrouting", Table: tab})
	c.AddRule(&nftables.Rule{Table: tab, Chain: ch, Exprs: []expr.Any{&expr.Counter{}}})
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

func TestRemovedAndEmptiedTablesComeBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft to play the stranger")
	}
	runtime.LockOSThread() // never unlocked: the thread and its namespace go with the test
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const name = "umiak-test"
	written := make(chan struct{}, 16)
	put(t, name)
	// The watch opens its sockets on this thread; what it does later it does in goroutines of its own,
	// so those enter the namespace themselves.
	enter := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			if err := netns.Set(ns); err != nil {
				t.Error(err)
				return
			}
			f()
		}()
		<-done
	}
	var log bytes.Buffer // read when the watch has ended
	w := tables.Watch{Log: slog.New(slog.NewTextHandler(&log, nil)), Tables: []tables.Table{
		{Name: name, Put: func() (bool, error) {
			put(t, name)
			written <- struct{}{}
			return true, nil
		}},
		{Name: "not-yet-written", Put: func() (bool, error) { return false, nil }},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	up, ended := make(chan struct{}), make(chan error, 1)
	go enter(func() { ended <- w.Run(ctx, func() { close(up) }) })
	<-up
	for _, cmd := range [][]string{{"flush", "ruleset"}, {"delete", "table", "inet", name}, {"flush", "table", "inet", name}} {
		if out, err := exec.Command("nft", cmd...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v %s", cmd, err, out)
		}
		select {
		case <-written:
		case <-time.After(10 * time.Second):
			t.Fatalf("not put back after nft %v", cmd)
		}
	}
	// Our own writing deletes, too; it must not be answered.
	put(t, name)
	if out, err := exec.Command("nft", "add", "table", "inet", "other").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := exec.Command("nft", "delete", "table", "inet", "other").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(written) > 0 {
		t.Fatal("wrote a table that was whole")
	}
	if n := strings.Count(log.String(), "somebody removed"); n != 3 || strings.Contains(log.String(), "not-yet-written") {
		t.Errorf("%d reports of 3:\n%s", n, log.String())
	}
}
