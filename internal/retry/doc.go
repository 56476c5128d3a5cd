// Package retry repeats operations that may fail for a while: with pauses that double up to a limit, and a report of
// each failure that differs from the one before, so that a log does not fill with the same line.
//
// Package lifecycle restarts the parts of the process. This package imports nothing of umiak; any package may call it.
package retry
