// Package reexec has a process execute itself anew, and keeps on the tmpfs why and how often.
//
// It is for libraries that can start only once a process: when the kubelet has ended, a new process is the only way to
// have it back. The process keeps its pid, so an init system sees nothing of it; containers are not its children. Of a
// Go panic, which leaves no time for anything, the text is kept for the next process.
//
// The command calls it; it imports only internal/.
package reexec
