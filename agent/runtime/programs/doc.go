// Package programs embeds the programs that a node runs beside umiak itself, and unpacks them.
//
// runc, the containerd shim, the CNI plugins (one multi-call program) and pause are in the binary as one compressed
// archive, which scripts/build makes and the build tag "bundle" embeds. Unpack writes them below the node's data
// directory, in a folder named after their content. A binary that was built without the tag looks the same programs up
// on PATH.
//
// The package imports nothing of umiak except internal/atomicfile. The agent's list of parts and the commands call it.
package programs
