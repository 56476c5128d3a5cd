// Package external uses a database that somebody else runs: PostgreSQL, MySQL or MariaDB and NATS through
// kine's drivers, which are served as etcd on a unix socket, or an etcd cluster, which the API server talks
// to itself.
//
// Only the drivers that are wanted are linked: kine's pkg/endpoint would bring all of them. An endpoint may
// hold a password; it appears in no error and no log. It imports kine and etcd's client; package datastore
// calls it.
package external
