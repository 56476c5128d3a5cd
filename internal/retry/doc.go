// Package retry repeats what may fail for a while: pauses that double up to a limit, and a report of each failure that
// differs from the one before, so that a log does not fill with the same line.
//
// Parts of the process are restarted by internal/lifecycle instead. The package imports nothing of umiak, and any
// package may call it.
package retry
