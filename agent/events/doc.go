// Package events records failures of the node's parts as Events of the Node, which `kubectl describe node` shows.
//
// It imports internal/lifecycle and client-go. Package agent makes one Recorder and reports to it, also before the node
// has joined; the server of the same process reports the failures of its parts through agent.Troubles.
package events
