// Package resolver follows the name servers of the host and keeps two files true: what a pod with dnsPolicy Default
// gets, and what the node's DNS forwards to.
//
// A pod reaches no loopback or link-local address of the host, so the first names the servers that remain, or the
// cluster's DNS where none does; the second may name any, since the node's DNS runs on the host. The kubelet reads the
// first for each pod, so a name server that comes late, or another one, needs no restart.
//
// Watch learns of changes from inotify and, where /etc/resolv.conf is a mount of a single file, from the kernel's list
// of mounts. The agent's assembly calls it; `umiak check` calls Find.
package resolver
