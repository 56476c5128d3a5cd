// Package e2e is tests of umiak as a whole: the binaries of dist/ on isolated machines, with real
// containers.
//
// Most tests share one cluster and have a namespace of their own in it; tests that kill, stop or destroy
// something make their own. scripts/test e2e runs them; with -run NAME one of them. What a failing test
// saw is kept in a folder that it names. Nothing imports this package.
package e2e
