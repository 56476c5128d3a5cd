// Package join joins this machine as a node to a cluster whose server is another machine.
//
// Joiner creates the node's keys and its node password, which stay on the machine, verifies the server against the
// token, requests certificates, and stores the answer on disk, so that the node starts again while its servers are
// away. It renews the certificates while it runs, and follows the list of servers for the balancer. It implements
// agent.Joiner.
//
// cmd/internal/nodecmd calls the package. It may import agent/apibalancer and internal/.
package join
