// Package joinclient is a client of the join API of servers (internal/joinwire): it sends one request to one server,
// tells errors that pass from final ones, and repeats requests with back-off.
//
// agent/join uses it to join nodes, server/cluster to join servers. It may import internal/.
package joinclient
