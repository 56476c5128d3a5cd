package lifecycle_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

type journal struct {
	mu sync.Mutex
	l  []string
}

func (j *journal) add(s string) { j.mu.Lock(); j.l = append(j.l, s); j.mu.Unlock() }

func (j *journal) part(name string, after ...string) lifecycle.Part {
	return lifecycle.Part{Name: name, After: after, Run: func(ctx context.Context, ready func()) error {
		j.add("+" + name)
		ready()
		<-ctx.Done()
		j.add("-" + name)
		return ctx.Err()
	}}
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	j := &journal{}
	g, err := lifecycle.New(slog.New(slog.DiscardHandler), j.part("store"), j.part("api", "store"),
		j.part("scheduler", "api"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	if err := g.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("a stop that was asked for is no error: %v", err)
	}
	want := []string{"+store", "+api", "+scheduler", "-scheduler", "-api", "-store"}
	if !slices.Equal(j.l, want) {
		t.Fatalf("got %v, want %v", j.l, want)
	}
}

func TestAFailureStopsTheOthersAndIsReported(t *testing.T) {
	j := &journal{}
	boom := errors.New("disk on fire")
	g, err := lifecycle.New(slog.New(slog.DiscardHandler), j.part("store"),
		lifecycle.Part{Name: "api", After: []string{"store"}, Run: func(context.Context, func()) error { return boom }},
		j.part("scheduler", "api"))
	if err != nil {
		t.Fatal(err)
	}
	err = g.Run(t.Context())
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "api: ") {
		t.Fatalf("got %v", err)
	}
	if !slices.Equal(j.l, []string{"+store", "-store"}) {
		t.Fatalf("got %v", j.l)
	}
	for _, s := range g.Status() {
		if s.Name == "api" && s.State != lifecycle.Failed {
			t.Fatalf("api is %v", s)
		}
	}
}

// TestWhatDoesNotStop checks that a group ends although one of its parts does not, and sooner if that part waits for
// one that has failed.
func TestWhatDoesNotStop(t *testing.T) {
	for _, c := range []struct {
		name  string
		store func(context.Context, func()) error
		want  string
		took  time.Duration
	}{
		{"told to", func(ctx context.Context, ready func()) error { ready(); <-ctx.Done(); return nil },
			"api: does not stop", 30 * time.Second},
		{"its store is gone", func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Second)
			return errors.New("disk on fire")
		},
			"api: does not stop\nstore: disk on fire", 6 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := &journal{}
				release := make(chan struct{})
				stuck := func(_ context.Context, ready func()) error {
					ready()
					<-release
					return nil
				}
				defer synctest.Wait()
				defer close(release)
				g, err := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.Part{Name: "store", Run: c.store},
					lifecycle.Part{Name: "api", After: []string{"store"}, Run: stuck}, j.part("scheduler", "api"))
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.name == "told to" {
					go func() { _ = g.WaitReady(ctx); cancel() }()
				}
				begun := time.Now()
				if err := g.Run(ctx); err == nil || err.Error() != c.want {
					t.Errorf("got %v", err)
				}
				if took := time.Since(begun); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if !slices.Equal(j.l, []string{"+scheduler", "-scheduler"}) {
					t.Errorf("got %v", j.l)
				}
			})
		})
	}
}

func TestEndingByItselfIsAFailure(t *testing.T) {
	end := func(context.Context, func()) error { return nil }
	g, _ := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.Part{Name: "a", Run: end})
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "ended by itself") {
		t.Fatalf("got %v", err)
	}
}

func TestSaysWhatItIsWaitingFor(t *testing.T) {
	block := func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }
	j := &journal{}
	g, _ := lifecycle.New(slog.New(slog.DiscardHandler), lifecycle.Part{Name: "store", Run: block},
		j.part("api", "store"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	err := g.WaitReady(short)
	if err == nil || !strings.Contains(err.Error(), "api: waiting for store") {
		t.Fatalf("got %v", err)
	}
	cancel()
	<-done
	if len(j.l) != 0 {
		t.Fatalf("api was started: %v", j.l)
	}
}

func TestBadListsAreRefused(t *testing.T) {
	j := &journal{}
	for _, parts := range [][]lifecycle.Part{
		{j.part("a"), j.part("a")}, {j.part("")}, {j.part("a", "b"), j.part("b")},
	} {
		if _, err := lifecycle.New(slog.New(slog.DiscardHandler), parts...); err == nil {
			t.Fatalf("accepted %v", parts)
		}
	}
}
