// Package cluster runs umiak on isolated machines and speaks to it, for tests and benchmarks.
//
// A Cluster is one machine with `umiak server` from the checkout's dist/ folder on it: started, stopped,
// killed, waited for, and asked through client-go or through umiak's own commands. Whatever is waited for
// is watched, and a wait that runs out says what it saw last. Failures return errors; nothing here needs
// a *testing.T.
//
// It may import e2e/machine and e2e/images and nothing of umiak but internal/layout.
package cluster
