// Package ownnode is the server's side of the node that runs in the same process: the identity it gets without a join
// request, its name, which no other machine may take, and the role of its Node.
//
// It implements agent.Joiner; package server calls it. It may import agent's contract, server/pki, joinapi and cluster.
package ownnode
