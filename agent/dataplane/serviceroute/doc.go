// Package serviceroute gives the host a route to the addresses of Services.
//
// The kernel looks for a route before it translates a Service's address into an endpoint's. Without a default route
// the host, and so a pod with hostNetwork and the API server with its webhooks, would get "network is unreachable".
// The route leads to the loopback interface: what the rules of Services do not translate goes nowhere, instead of to
// the default gateway. The table of agent/dataplane/network rejects what pods send there.
//
// The agent's assembly calls New and Run; `umiak cleanup` calls Cleanup.
package serviceroute
