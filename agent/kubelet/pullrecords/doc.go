// Package pullrecords keeps imported images usable by every pod of the node, whatever the kubelet has recorded about pulls.
//
// The kubelet records which images it has pulled, with whose credentials (kubelet/image_manager/pulled), and which it is pulling
// (kubelet/image_manager/pulling), KEP-2535. Under its default policy, NeverVerifyPreloadedImages, a pod may use without credentials what
// the kubelet has not pulled. That is decided by content, and the record of a pull outlives it: an image that was imported and that the
// kubelet also tries to pull (policy Always) counts as pulled while that lasts, and after a kill in the middle of it for good, without any
// credentials that would be accepted. Then no pod may use it where no registry answers.
//
// So imported images get a record of their own, which says what the import means: all pods of the node may use this content. A record holds
// for one content under one repository's name; private images stay what they were. Prepare writes the records before the kubelet reads
// them, Grant has a running kubelet write them, WatchPulls says when one that is pulled meanwhile needs it again.
//
// The package imports the kubelet's own store of records, and nothing of umiak; agent/kubelet calls it.
package pullrecords
