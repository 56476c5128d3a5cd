package announce

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSendWaitsForTheListenerAndTheAnswer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	want := Pod{Namespace: "a", Name: "b", UID: "u", Container: "c", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	sent := make(chan error, 1)
	go func() { sent <- Send(ctx, socket, want) }()
	l, err := Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Pod, 1)
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, func(ctx context.Context, p Pod) error {
			got <- p
			if p.Name == "slow" {
				<-ctx.Done()
			}
			if p.Name == "bad" {
				return errors.New("no")
			}
			return nil
		})
	}()
	if err := <-sent; err != nil || !reflect.DeepEqual(<-got, want) {
		t.Fatal(err)
	}
	want.Name = "bad"
	if err := Send(ctx, socket, want); err == nil || !strings.Contains(err.Error(), "no") {
		t.Fatalf("got %v", err)
	}
	want.Name = "slow"
	short, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	if err := Send(short, socket, want); err == nil {
		t.Fatal("a time-out is no answer")
	}
	want.Gone = true
	if err := Send(ctx, socket+"x", want); err == nil {
		t.Fatal("nobody listens")
	}
	cancel()
	_ = l.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"namespace":"a","name":"b","container":"c","addrs":["10.0.0.1"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Read(bytes.NewReader(b)); err == nil && (p.Namespace == "" || p.Name == "" || p.Container == "") {
			t.Fatalf("%+v", p)
		}
	})
}
