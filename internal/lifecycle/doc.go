// Package lifecycle runs the long-running parts of a process.
//
// A part has a name, the names of the parts that it waits for, and a Run function that blocks until its context ends
// and calls ready once it can be used. A process is one list of parts in start order. Group starts each part as soon
// as those that it waits for are ready, stops them in reverse order when the context ends or a part fails, and
// reports at any time what each one waits for.
//
// The package imports nothing of umiak. The server, the agent and the commands call it.
package lifecycle
