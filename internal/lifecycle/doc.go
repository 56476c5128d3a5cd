// Package lifecycle runs the long-running parts of a process.
//
// A part has a name, the names of the parts it waits for, and a Run function that blocks until its
// context ends and calls ready once it can be used. A process is one visible list of parts in start
// order; Group starts each as soon as what it waits for is ready, stops them in reverse when the
// context ends or any of them fails, and can say at any time what each one is waiting for.
//
// The package imports nothing of umiak. The server, the agent and the commands call it.
package lifecycle
