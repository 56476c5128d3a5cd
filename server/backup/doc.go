// Package backup decides when snapshots are made: on a schedule, when `umiak snapshot save` asks the running
// server, and by that command itself when no server runs.
//
// datastore/snapshot knows how a snapshot is made. It imports that and internal/; the server runs a Keeper
// as one of its parts, and cmd/umiak calls the functions.
package backup
