// Package withnode puts together what one `umiak server` process runs: the server, and the node on the same machine
// unless disable-agent is set. Its counterpart for a machine that is no server is agent/worker.
//
// cmd/umiak runs a Server as the process. The package imports server and agent; neither imports it.
package withnode
