// Package encryption owns the keys with which Secrets and ConfigMaps are encrypted in the datastore: it reports which
// are in use, and replaces the key that writes while everything runs.
//
// The state of a rotation is the encryption config of the API server itself. Keys are called key1, key2 and so on; with
// two of them a rotation is under way, to the newer one:
//
//	key1         no rotation
//	key1, key2   key2 can be read: every API server loads it before anything is written with it
//	key2, key1   key2 writes, and everything stored is rewritten
//	key2         no rotation
//
// Rotation is a part of the server. Begin, which a command calls on any server, makes the new key; Run, on the leader
// alone where there are several servers, does the rest and repeats what fails. A rotation that was interrupted
// continues where the config stands: after a restart, or on the server that leads next. Its progress is in the
// datastore, where a command on any server follows it.
//
// Servers that share a datastore share the config (Sharing): each step is in the datastore, sealed, before any server
// takes it, and the next one comes when all of them use it. A server that was away takes it over before it serves. In
// the order above each config is further than the last, so no server goes back.
//
// Keys are written to the file of the config, mode 0600, and in the clear nowhere else; no error quotes the file.
//
// It uses client-go for the API server and etcd's client for the datastore, and imports internal/ and
// server/cluster/kv and seal. Packages server, server/cluster and server/localadmin call it.
package encryption
