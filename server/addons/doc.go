// Package addons applies the cluster's manifests and keeps them applied: those embedded in the program (package
// manifests) and those that a user puts into <data-dir>/server/manifests.
//
// Each file is reconciled separately with its own retries, so a broken file does not block others. What a file has
// applied is recorded in a ConfigMap kube-system/umiak-manifest-ID, in the form of an ApplySet (KEP-3659), written
// before anything is applied. So objects that are no longer in a file are found and removed, whatever happens in
// between. Drift is detected with one metadata watch per resource type: an object is applied again only when it is
// gone, or when the API server's managedFields show that a field set by umiak was changed. While nothing changes,
// nothing runs and nothing is written; a restart only compares.
//
// Nothing is pruned unless it is proven that a person removed the file, or the object from it (scan.go): the folder is
// quiet, no process writes to a file in it, and the file system that had the file is mounted. The record lists every
// server that has the file; an object is pruned when no server's file names it.
//
// Only objects that umiak created are deleted. Objects that existed before are released instead, and objects that no
// longer carry umiak's label are left alone.
//
// The server runs the Controller. The package imports client-go, server/addons/manifest and internal/.
package addons
