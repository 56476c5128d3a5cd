// Package gctuning sets the garbage collector of a process. Only commands call it. It imports nothing of umiak.
package gctuning

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

// growth is the growth of the heap, in percent of the live heap, at which a collection starts. It is half of Go's
// default, since an idle node produces little garbage and small machines lack memory. The variable GOGC overrides it.
const growth = 50

// StartOver is the time after which the memory that only a start needs is garbage: the first pods run, caches are
// filled.
const StartOver = 20 * time.Second

// Limit sets the growth of the heap to growth, unless GOGC is set.
func Limit() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
}

// GiveBack returns the memory that only the start needed to the system, once, after StartOver. The runtime alone
// would not, as long as the heap does not grow, which on an idle node is for ever. It returns then, or when ctx ends.
func GiveBack(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(StartOver):
		debug.FreeOSMemory()
	}
}
