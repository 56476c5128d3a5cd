// Package images brings image archives into the node's containerd, and takes them out again.
//
// Importer follows a folder: each archive in it (OCI or docker layout; plain, gzip or zstd) is imported
// once and its images are pinned, so the kubelet's garbage collection leaves them alone for as long as
// the archive lies there. What was imported is noted by file identity and content hash, and checked
// against containerd's store, so an archive that is known costs a stat at the next start. Import, List
// and Export are the same for the command line.
//
// The package speaks to containerd over its socket and imports nothing of umiak but atomicfile.
package images
