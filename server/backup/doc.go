// Package backup decides when snapshots are made: on a schedule, and when root asks the running server.
//
// datastore/snapshot knows how a snapshot is made. It imports that and internal/; the server runs a Keeper
// as one of its parts, and cmd/umiak reads what is planned.
package backup
