// Package datastore holds the state of the cluster. Open returns a Store with the etcd endpoints for kube-apiserver:
// one whose acknowledged writes survive a power cut, and, on a single server, one in memory for Leases and Events.
//
// The backends are subpackages, and no caller needs to know which one is in use:
//   - sqlite, the default, is the durable store of one server; volatile is the store in memory beside it. kine's etcd
//     server serves both on unix sockets.
//   - etcd is an embedded member of a cluster of servers. It takes over the keys of sqlite.
//   - external is a database that the user runs: SQL or NATS, served by kine, or an etcd cluster, reached directly.
//
// With etcd and external, Leases and Events are stored with the other keys. internal/testing/storetest is the
// contract that every backend is tested against. The package imports kine, etcd, modernc.org/sqlite and internal/;
// server/storage and server/backup call it.
package datastore
