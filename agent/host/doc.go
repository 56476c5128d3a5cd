// Package host finds out what the machine is (cgroups, capabilities, addresses, resolvers), prepares it
// for containers, and notes what was there before, so that cleanup can put it back.
//
// Everything that umiak changes outside its own directories goes through the Journal: the value before is
// on disk before the change is made. The agent, cleanup and check call this package; it imports no
// Kubernetes or containerd code.
package host
