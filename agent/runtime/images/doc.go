// Package images imports image archives into the node's containerd, and exports images from it.
//
// Importer follows a folder. It imports each archive in it once (OCI or docker layout; plain, gzip, zstd or bzip2),
// takes the content for this machine's platform, and pins the images, so that the kubelet's garbage collection keeps
// them while the archive is in the folder. It records each archive by file identity and content hash and compares the
// record with containerd's store, so an archive that is imported already costs one stat at the next start. folder.go
// follows the folder across removal, renames, links and mounts; pulllist.go pulls the images that text files in it list.
// Import, List and Export serve the commands; lease.go removes what an interrupted import has written. Finder
// distinguishes imported images from pulled ones, for pulls (agent/runtime/imageshare) and for the kubelet's pull records
// (agent/kubelet/pullrecords); those of a list count as imported.
//
// The package connects to containerd's socket and imports nothing of umiak except internal/. The agent's list of parts,
// agent/bundle and the commands call it.
package images
