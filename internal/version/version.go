// Package version holds what scripts/build stamps into both binaries.
package version

import "runtime"

// Set with -ldflags -X; the values here are those of a plain `go build`.
var (
	// Version is the Kubernetes version and umiak's own revision, as v1.37.2+umiak1.
	Version = "v1.37.2+dev"
	// Commit is the git commit the binary was built from.
	Commit = "unknown"
)

// String is what --version prints after the program's name.
func String() string {
	return Version + " (" + Commit + ") " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
