// Package check finds out, before anything is started, what this machine lacks to be a node.
//
// What the kernel can do is tried, not guessed from its configuration: in a network namespace that exists
// for the check alone, the devices and the nftables expressions that umiak uses are made. `umiak check`
// prints the results; install scripts read them as JSON.
package check
