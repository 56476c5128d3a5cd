// Package upstream stands in for upstream's crictl where a program is built without scripts/build, which replaces this
// file by way of an overlay; see package generate.
package upstream

import "errors"

// ErrMissing means that this binary was built without crictl.
var ErrMissing = errors.New("this program was built without crictl; build it with scripts/build")

// Run runs crictl on os.Args.
func Run() error { return ErrMissing }
