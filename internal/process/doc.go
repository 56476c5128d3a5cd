// Package process runs the parts of a server or of a node as this process.
//
// Claim makes the process the owner of its data directory. A Preparation answers `umiak status` until the parts run.
// A Process runs them: it ends them at a signal, tells systemd when they are ready, serves the status socket, and
// executes the program again when a part has ended that can run only once in a process.
//
// It imports nothing of server or agent. cmd/umiak and cmd/internal/nodecmd call it.
package process
