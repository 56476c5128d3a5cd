// Package images brings image archives into the node's containerd, and takes them out again.
//
// Importer follows a folder: each archive in it (OCI or docker layout; plain, gzip, zstd or bzip2) is imported once, as far as it is for
// this machine, and its images are pinned, so that the kubelet's garbage collection leaves them alone for as long as the archive lies
// there. What was imported is recorded by file identity and content hash, and checked against containerd's store, so an archive that is
// known costs a stat at the next start. The folder is followed through whatever happens to it (folder.go). Import, List and Export are
// the same for the command line; what a broken-off import has written is removed (lease.go). Finder tells imported images from others,
// for pulls (agent/runtime/imageshare) and for the kubelet's records of them (agent/kubelet/pullrecords).
//
// The package speaks to containerd over its socket and imports nothing of umiak but atomicfile.
package images
