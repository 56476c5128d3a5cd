// Package gctuning sets how much memory a process of umiak keeps for itself. Commands call it; nothing else
// does.
package gctuning

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

// Growth is how far the heap may grow before it is collected, in percent of what is live. Half of Go's
// default: an idle node holds little garbage, and memory is what small boxes lack. GOGC overrides it.
const Growth = 50

// StartOver is when what a start needs for a while is garbage: the first pods run, caches are filled.
const StartOver = 20 * time.Second

// Limit makes the heap grow by Growth at most.
func Limit() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(Growth)
	}
}

// GiveBack gives the system back, once, what only the start needed. The runtime by itself keeps it for as long
// as the heap stays at that size, which for an idle node is for ever. It returns after StartOver, or when ctx
// ends.
func GiveBack(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(StartOver):
		debug.FreeOSMemory()
	}
}
