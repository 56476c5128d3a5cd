// Package programs carries the programs that a node runs beside umiak itself, and puts them on disk.
//
// runc, the containerd shim, the CNI plugins (one multi-call program) and pause travel inside the binary
// as one compressed archive, made by scripts/build and embedded under the build tag "bundle". Unpack puts
// them under the node's data directory, in a folder named after their content. In a binary that was built
// without the tag the same programs are looked up on PATH.
//
// The package imports nothing of umiak but atomicfile; the agent's assembly and the commands call it.
package programs
