// Package apibalancer is the node's way to whichever server answers: a TCP proxy on 127.0.0.1 that all of the
// node's clients use as their API server.
//
// It keeps the list of servers on disk, follows the cluster's own list while it can, and knows from dials
// and from a check every few seconds which servers answer. A connection that one server does not take goes
// to the next before its client notices; connections to a server that is found dead are closed, so that
// clients connect anew.
//
// agent/ and agent/join use it; others may ask it for the servers and wait for changes. It imports nothing
// of umiak but agent/host, atomicfile, joinapi and status.
package apibalancer
