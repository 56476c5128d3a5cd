// Package datastore is where the cluster's state lives: it gives the API server two etcd endpoints, one
// whose acknowledged writes survive a power cut, and one in memory for Leases and Events.
//
// Nobody above this package knows what stands behind an endpoint. sqlite is the durable store of one
// server, volatile the one in memory; both are served by kine's etcd server on unix sockets, and both pass
// storetest. It imports kine, modernc.org/sqlite and internal/atomicfile; the server calls it.
package datastore
