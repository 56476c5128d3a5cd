// Package resolver follows the host's name servers and maintains two files: the resolv.conf of pods with dnsPolicy
// Default, and the name servers to which the node's DNS forwards.
//
// A pod cannot reach loopback or link-local addresses of the host, so the first file has only the other servers, or the
// cluster's DNS if there are none. The second file has all servers, because the node's DNS runs on the host. The
// kubelet reads the first file for each pod, so later changes need no restart.
//
// agent/host/filewatch detects changes, also where /etc/resolv.conf is a mounted file. The agent's list of parts runs
// it; `umiak check` calls Find. It imports agent/host/filewatch and internal/.
package resolver
