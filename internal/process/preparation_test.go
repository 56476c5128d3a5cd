package process

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
)

// TestAStartThatWaitsCanBeLookedAt: the socket is there before the parts are, says what is waited for, and is the
// process's then.
func TestAStartThatWaitsCanBeLookedAt(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	p := Prepare(t.Context(), d, slog.New(slog.DiscardHandler))
	defer p.End()
	p.Step("an address")
	rep, err := status.Get(t.Context(), d.StatusSocket())
	if err != nil || rep.Ready || len(rep.Sections) != 1 ||
		!strings.Contains(rep.Sections[0].Rows[0].Detail, "an address, for ") {
		t.Errorf("%+v, %v", rep, err)
	}
	p.End()
	own := &status.Server{Socket: d.StatusSocket(), Version: "own", Ready: func() bool { return true }}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- own.Run(ctx, func() { close(ready) }) }()
	<-ready
	if rep, err := status.Get(t.Context(), d.StatusSocket()); err != nil || rep.Version != "own" {
		t.Errorf("%+v, %v", rep, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A socket that cannot be is no reason not to start.
	d.Run = filepath.Join(t.TempDir(), "file", "x")
	if err := os.WriteFile(filepath.Dir(d.Run), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Prepare(t.Context(), d, slog.New(slog.DiscardHandler)).End()
}
