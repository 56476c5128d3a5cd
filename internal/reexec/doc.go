// Package reexec replaces the process by a new run of its program, and stores on a tmpfs why and how often it did.
//
// It is for libraries that can start only once per process: after the kubelet has ended, only a new run of the
// program can start it again. The process ID stays the same, so that the init system does not notice; containers are
// not children of the process. The text of a Go panic is stored for the next process, too.
//
// Commands call it. It imports only internal/.
package reexec
