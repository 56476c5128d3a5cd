// Package external stores the cluster's state in a database that the user runs: PostgreSQL, MySQL, MariaDB or NATS
// through kine's drivers, served as etcd on a unix socket, or an etcd cluster, to which kube-apiserver connects itself.
//
// It imports kine's drivers one by one, since kine's pkg/endpoint would link all of them, and etcd's client. An
// endpoint may contain a password; no error and no log line shows it. Package datastore calls it.
package external
