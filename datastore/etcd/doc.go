// Package etcd runs a member of an etcd cluster in this process, for clusters with several servers.
//
// kube-apiserver on the same machine connects to a unix socket in a folder with mode 0700. Members connect to each
// other on PeerPort with certificates of the etcd CA. A new member joins as a learner and promotes itself when it has
// caught up. Seed creates a data directory with given keys, for a cluster that moves here from SQLite.
//
// The package imports etcd's server and, of internal/, atomicfile and retry. Package datastore calls it.
package etcd
