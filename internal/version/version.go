// Package version holds the version of the program, which scripts/build sets, and the rules on which versions work
// together. It imports nothing of umiak; any package may call it.
package version

import "runtime"

// The values are set with -ldflags -X; those here are for a plain `go build`.
var (
	// Version is the Kubernetes version with umiak's revision, for instance v1.37.2+umiak1.
	Version = "v1.37.2+dev"
	// Commit is the git commit the binary was built from.
	Commit = "unknown"
)

// String returns what --version prints after the program's name.
func String() string {
	return Version + " (" + Commit + ") " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
