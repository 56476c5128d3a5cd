package lifecycle_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

func (j *journal) Failing(part string, err error) { j.add("!" + part + ": " + err.Error()) }
func (j *journal) Recovered(part string)          { j.add("ok " + part) }

// times collects the times of attempts.
type times struct {
	mu    sync.Mutex
	begun time.Time
	l     []time.Duration
}

func (t *times) now() { t.mu.Lock(); t.l = append(t.l, time.Since(t.begun)); t.mu.Unlock() }

func (t *times) list() []time.Duration { t.mu.Lock(); defer t.mu.Unlock(); return slices.Clone(t.l) }

func (j *journal) list() []string { j.mu.Lock(); defer j.mu.Unlock(); return slices.Clone(j.l) }

// start runs a group until the test ends.
func start(t *testing.T, log *slog.Logger, parts ...lifecycle.Part) (*lifecycle.Group, <-chan error) {
	t.Helper()
	g, err := lifecycle.New(log, parts...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() { cancel(); synctest.Wait() })
	return g, done
}

func state(g *lifecycle.Group, part string) lifecycle.Status {
	for _, s := range g.Status() {
		if s.Name == part {
			return s
		}
	}
	return lifecycle.Status{}
}

// TestAPartThatFailsIsRunAgain checks that a failed part is run again without the others, with growing pauses, and
// that the parts that wait for it go on waiting.
func TestAPartThatFailsIsRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		var log bytes.Buffer
		var held atomic.Bool
		held.Store(true)
		tries := &times{begun: time.Now()}
		dns := lifecycle.Part{Name: "dns", Run: func(ctx context.Context, ready func()) error {
			tries.now()
			if held.Load() {
				return errors.New("port 53 is held by dnsmasq (pid 7)")
			}
			ready()
			<-ctx.Done()
			return nil
		}}
		g, _ := start(t, slog.New(slog.NewTextHandler(&log, nil)), j.part("api"),
			lifecycle.Restart(dns, lifecycle.Policy{Report: j}), j.part("pods", "dns"))
		time.Sleep(3500 * time.Millisecond)
		synctest.Wait()
		if s := state(g, "dns"); s.State != lifecycle.Retrying || s.Attempt != 3 ||
			!strings.Contains(s.Error, "dnsmasq") || time.Until(s.Next) != 3500*time.Millisecond {
			t.Errorf("dns is %+v", s)
		}
		if s := state(g, "pods"); s.State != lifecycle.Waiting || !slices.Equal(s.WaitingFor, []string{"dns"}) {
			t.Errorf("pods is %+v", s)
		}
		if g.AllReady() {
			t.Error("all is ready")
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		held.Store(false)
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if s := state(g, "dns"); s.State != lifecycle.Ready || s.Error != "" || !g.AllReady() {
			t.Errorf("dns is %+v", s)
		}
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(tries.list(), want) {
			t.Errorf("tried at %v", tries.list())
		}
		if got := slices.Sorted(slices.Values(j.list())); !slices.Equal(got,
			[]string{"!dns: port 53 is held by dnsmasq (pid 7)", "+api", "+pods", "ok dns"}) {
			t.Errorf("%q", j.list())
		}
		if n := strings.Count(log.String(), "dnsmasq"); n != 1 {
			t.Errorf("the reason is logged %d times:\n%s", n, log.String())
		}
	})
}

// TestAPartThatWasReady fails, is run again, and those that stand on it do not notice; a panic is a failure; when it
// has run long enough, the pauses begin anew.
func TestAPartThatWasReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		var runs atomic.Int32
		network := lifecycle.Part{Name: "network", Run: func(ctx context.Context, ready func()) error {
			run := runs.Add(1)
			ready()
			switch run {
			case 1:
				return errors.New("vxlan is gone")
			case 2:
				panic("index out of range")
			case 3:
				time.Sleep(time.Hour)
				return nil
			}
			<-ctx.Done()
			return nil
		}}
		g, _ := start(t, slog.New(slog.DiscardHandler), lifecycle.Restart(network, lifecycle.Policy{Report: j}),
			j.part("pods", "network"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := state(g, "network"); s.State != lifecycle.Retrying || s.Error != "panic: index out of range" ||
			s.Attempt != 2 {
			t.Errorf("network is %+v", s)
		}
		time.Sleep(2*time.Hour - 2*time.Second)
		synctest.Wait()
		if s := state(g, "network"); s.State != lifecycle.Ready || runs.Load() != 4 {
			t.Errorf("network is %+v after %d runs", s, runs.Load())
		}
		want := []string{"+pods", "!network: vxlan is gone", "!network: panic: index out of range", "ok network",
			"!network: ended by itself", "ok network"}
		got := slices.DeleteFunc(j.list(), func(s string) bool { return s == "+pods" })
		if !slices.Equal(got, want[1:]) || len(got)+1 != len(j.list()) {
			t.Errorf("%q", j.list())
		}
	})
}

// TestReadyAndThenNot checks that a part that is ready at once and fails each time is reported once.
func TestReadyAndThenNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		sharing := lifecycle.Part{Name: "sharing", Run: func(_ context.Context, ready func()) error {
			ready()
			return errors.New("port 5001 is held")
		}}
		g, _ := start(t, slog.New(slog.DiscardHandler), lifecycle.Restart(sharing, lifecycle.Policy{Report: j}))
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := g.WaitReady(t.Context()); err != nil || g.AllReady() {
			t.Errorf("%v, ready %v", err, g.AllReady())
		}
		if !slices.Equal(j.list(), []string{"!sharing: port 5001 is held"}) {
			t.Errorf("%q", j.list())
		}
	})
}

func TestWhatEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			err  error
			anew bool
		}{
			{lifecycle.Permanent(errors.New("a token is needed")), false},
			{&lifecycle.ReexecError{Part: "kubelet", Err: errors.New("cgroup is gone")}, true},
		} {
			j := &journal{}
			p := lifecycle.Part{Name: "kubelet", Run: func(context.Context, func()) error { return c.err }}
			_, done := start(t, slog.New(slog.DiscardHandler), j.part("api"),
				lifecycle.Restart(p, lifecycle.Policy{Report: j}))
			err := <-done
			var a *lifecycle.ReexecError
			if !errors.Is(err, c.err) || errors.As(err, &a) != c.anew || !strings.Contains(err.Error(),
				"kubelet: "+c.err.Error()) {
				t.Errorf("got %v", err)
			}
			if slices.ContainsFunc(j.list(), func(s string) bool { return s[0] == '!' }) {
				t.Errorf("%q", j.list())
			}
		}
	})
}

// TestWakingAndHolding checks that WakeOn shortens the pause, and that Held delays a part that ended the process.
func TestWakingAndHolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		came := make(chan struct{})
		tries := &times{begun: time.Now()}
		join := lifecycle.Part{Name: "join", Run: func(ctx context.Context, ready func()) error {
			tries.now()
			select {
			case <-came:
			default:
				return lifecycle.WakeOn(errors.New("no address yet"), came)
			}
			ready()
			<-ctx.Done()
			return nil
		}}
		g, _ := start(t, slog.New(slog.DiscardHandler), lifecycle.Restart(join,
			lifecycle.Policy{Report: j, First: time.Hour, Most: time.Hour,
				Held: &lifecycle.Held{Reason: errors.New("it ended the process"), Attempt: 4, For: time.Minute}}))
		synctest.Wait()
		if s := state(g, "join"); s.State != lifecycle.Retrying || s.Attempt != 4 ||
			s.Error != "it ended the process" || len(tries.list()) != 0 {
			t.Errorf("join is %+v", s)
		}
		time.Sleep(2 * time.Minute)
		close(came)
		synctest.Wait()
		if s := state(g, "join"); s.State != lifecycle.Ready || !slices.Equal(tries.list(),
			[]time.Duration{time.Minute, 2 * time.Minute}) {
			t.Errorf("join is %+v after %v", s, tries.list())
		}
	})
}
