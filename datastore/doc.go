// Package datastore is where the cluster's state lives: it gives the API server two etcd endpoints, one
// whose acknowledged writes survive a power cut, and one in memory for Leases and Events.
//
// Nobody above this package knows what stands behind an endpoint. sqlite is the durable store of one
// server, volatile the one in memory; both are served by kine's etcd server on unix sockets. etcd is for
// several servers, and takes over what sqlite has; external is a database of somebody else, served by kine
// or reached directly. With these two, Leases and Events are kept with the rest. All pass storetest, as far
// as they promise it. It imports kine, etcd, modernc.org/sqlite and internal/; the server calls it.
package datastore
