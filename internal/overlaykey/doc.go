// Package overlaykey reads what a Node's annotations say of the end of its tunnel, as flannel's backends understand it: by
// what other nodes know that end, a MAC address or a WireGuard key. Agents (agent/dataplane/network) and servers (server/admission)
// compare these keys by their bytes, so that a key has no second spelling.
package overlaykey
