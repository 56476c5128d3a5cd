// Package encryption looks after the keys with which Secrets and ConfigMaps are encrypted in the datastore:
// it tells which are in use, and puts a new one in the place of an old one while everything runs.
//
// The state of a rotation is the configuration file itself. Keys are called key1, key2 and so on; with two
// of them a rotation is under way, and it is the newer one's turn:
//
//	key1         at rest
//	key1, key2   key2 can be read: every API server has to know it before it is written with
//	key2, key1   key2 is written with, and everything stored is being written anew
//	key2         at rest
//
// Servers that share a datastore share the configuration, too: each step is in the datastore, sealed, before any
// server takes it, and the next one comes when all of them use it. A server that was away takes it over before it
// serves. In the order above each configuration is further than the last, so nobody goes back.
//
// So a rotation that was cut off goes on where it was, whenever it is called again. Keys are written to that
// file, mode 0600, and in the clear nowhere else; no error quotes the file.
//
// It speaks to the API server through client-go and to the datastore through etcd's client. Package server
// counts with it; cmd/umiak runs it.
package encryption
