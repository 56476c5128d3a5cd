// Package pullrecords makes imported images usable by every pod of the node, whatever the kubelet has recorded about
// pulls.
//
// The kubelet records which images it has pulled, with which credentials (kubelet/image_manager/pulled), and which it
// is pulling (kubelet/image_manager/pulling), KEP-2535. Under its default policy, NeverVerifyPreloadedImages, a pod may
// use an image that the kubelet has not pulled without credentials. The decision is by content, and a record outlives
// its pull: an imported image that the kubelet also tries to pull (policy Always) counts as pulled during the pull and,
// if the kubelet is killed in the middle, forever, without any credentials that would be accepted. Then no pod may use
// it while no registry answers.
//
// So an imported image gets a record that allows all pods of the node to use its content. A record is for one content
// under one repository name; private images stay protected. Prepare writes the records before the kubelet reads them,
// Grant makes a running kubelet write them, and WatchPulls reports when an image that is being pulled needs its record
// again.
//
// The package imports the kubelet's store of pull records, and nothing of umiak. agent/kubelet calls it.
package pullrecords
