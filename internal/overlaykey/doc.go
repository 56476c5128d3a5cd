// Package overlaykey parses flannel's annotations of a Node for the key of its tunnel endpoint: a MAC address (VXLAN)
// or a WireGuard public key. Agents (agent/dataplane/network) and servers (server/admission) compare keys as bytes,
// so that another spelling of a key is not another key. It imports nothing of umiak.
package overlaykey
