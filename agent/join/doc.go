// Package join makes a machine a node of a cluster whose server is another machine.
//
// Joiner makes keys and a node password, which never leave the machine, checks the server against the
// token, asks it to sign, and keeps what it is told on disk, so that the node starts again when its servers
// are away. It renews the certificates in the running process, and follows the list of servers for the
// balancer. It implements agent.Joiner.
//
// cmd/internal/nodecmd calls it. It may import agent/apibalancer and internal/.
package join
