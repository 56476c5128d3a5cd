package process

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalBeforeTheEnd: a signal that comes just before the process stops listening, as to execute itself anew, is
// not lost.
func TestSignalBeforeTheEnd(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := Process{Log: slog.New(slog.DiscardHandler), Silence: func() {}}
	for range 200 {
		ctx, stop := p.untilSignal(t.Context(), func(string) {})
		// To this thread: it has the signal before the call returns.
		if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		stop()
		if cause := context.Cause(ctx); cause == nil || !strings.Contains(cause.Error(), "signal") {
			t.Fatalf("lost: %v", cause)
		}
	}
	ctx, stop := p.untilSignal(t.Context(), func(string) {})
	stop()
	if ctx.Err() != nil {
		t.Errorf("no signal came: %v", context.Cause(ctx))
	}
}
