// Package etcd runs a member of an etcd cluster in this process: where several servers share the state.
//
// The API server of the same machine reaches it through a unix socket in a folder that only this user can
// enter; members reach each other on one port with certificates of the etcd CA. New members join as
// learners and promote themselves when they have caught up. Seed makes a data directory with given keys,
// for a cluster that moves here from SQLite.
//
// It imports etcd's server and internal/atomicfile. Package datastore calls it.
package etcd
