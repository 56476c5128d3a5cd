// Package check determines, before anything is started, what this machine lacks to be a node.
//
// Kernel features are tested, not derived from its configuration: the check creates umiak's network devices and
// nftables expressions in a temporary network namespace. `umiak check` prints the results as text or, for install
// scripts, as JSON.
//
// It imports agent/host, agent/runtime/registries and internal/; the commands call it.
package check
