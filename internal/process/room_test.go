package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
)

// TestAwaitRoom: what fails for want of room is built again, and status says so meanwhile; any other error counts at
// once.
func TestAwaitRoom(t *testing.T) {
	d, log := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}, slog.New(slog.DiscardHandler)
	p := Prepare(t.Context(), d, log)
	defer p.End()
	n := 0
	got, err := AwaitRoom(t.Context(), p, log, func() (int, error) {
		if n++; n == 1 {
			return 0, fmt.Errorf("write a key: %w", unix.ENOSPC)
		}
		rep, err := status.Get(t.Context(), d.StatusSocket())
		if err != nil || !strings.Contains(rep.Sections[0].Rows[0].Detail, "the disk is full: make room (write a key") {
			t.Errorf("%+v, %v", rep, err)
		}
		return 7, nil
	})
	if got != 7 || err != nil || n != 2 {
		t.Errorf("got %d, %v after %d calls", got, err, n)
	}
	other := errors.New("other")
	if _, err := AwaitRoom(t.Context(), p, log, func() (int, error) { return 0, other }); !errors.Is(err, other) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := AwaitRoom(ctx, p, log, func() (int, error) { return 0, unix.ENOSPC }); !errors.Is(err,
		context.Canceled) {
		t.Errorf("got %v", err)
	}
}
