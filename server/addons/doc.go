// Package addons keeps the cluster's manifests applied: those that are part of the program (package
// manifests) and those that a user puts into <data-dir>/server/manifests.
//
// Each file is a unit of its own with its own retries, so a broken one holds up no other. What a file has
// applied is remembered in a ConfigMap kube-system/umiak-manifest-ID, in the form of an ApplySet
// (KEP-3659), written before anything is applied: whatever happens in between, what is no longer in a
// file is found and removed. Drift is seen by one watch of metadata a resource type: an object is applied
// again only when it is gone, or when the API server's own book-keeping (managedFields) says that a field
// of ours was changed. So nothing runs, and nothing is written, while nothing changes; a restart compares
// and goes to sleep.
//
// Nothing is pruned unless it is proven that a person took the file, or the object in it, away (scan.go): the folder is quiet,
// nobody writes to anything in it, and the file system that had the file is mounted. The record names every server that has
// the file; what none of them names any more is pruned.
//
// It deletes only what it made: objects that were there before are given back, not deleted, and so are
// objects that no longer carry its label.
//
// server's assembly calls it. It imports client-go and nothing of Kubernetes' server side.
package addons
