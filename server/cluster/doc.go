// Package cluster makes several servers one cluster.
//
//	join.go         a machine joins: it asks a server, or reads the keys in the database
//	admit.go        this server takes others in, and drops those whose Node was deleted
//	peers.go        the other servers, as the API servers publish themselves
//	record.go       the record in the datastore: whose it is, and the keys, sealed with the server token
//	sharedkeys.go   the keys of Secrets and the authorities, taken over from the other servers
//	authorities.go  authorities are replaced while all servers run
//	byhand.go       authorities are replaced in the files of a server that does not run
//	forget.go       a server that is lost is given up
//
// Cluster assembles them; on a server that can have no others beside it, it has no parts, and the rest answers for that
// server alone. Subpackages hold the steps of a rotation (rotation), the files that all servers have in common
// (sharedfiles), the election of the server that runs controllers (leader), and how servers write into the datastore
// for each other (kv, seal).
//
// It may import datastore/, internal/, server/storage, pki, encryption and joinapi. Package server calls it.
package cluster
