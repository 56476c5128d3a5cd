// Package sqlite keeps a revisioned key space in one SQLite file, durably: a write is acknowledged once it
// has been synced to the disk, and writers that wait at the same time share one sync.
//
// It speaks kine's Backend, so kine's server package serves it as etcd. kine's own SQL log was not used:
// it answers "created" to a create that failed with a full disk, gives out a list that broke off as a
// complete one, stores every value twice under seven b-trees, and polls.
//
// Files in the folder: state.db, state.db-wal, state.db-shm, lock, and broken-TIME/ for files that were
// found damaged and are kept. One process at a time, enforced by a lock on "lock".
//
// How it works. The table log has a row per revision; the key space at revision R is the newest row of
// each key no newer than R. All changes go through one goroutine on one connection (writer.go), which
// commits whatever waits as one transaction, tells the watchers (hub), then answers. Readers have a few
// connections of their own and only short transactions, so the write-ahead log can always be emptied
// (maintain.go). Compaction is asked for by the API server; the store notes the revision durably and
// removes rows in small batches behind it, going on where it was after a restart (compact.go). A file is
// checked when it is opened (check.go), and what can be read of a damaged one is carried over into a new
// one, with a report of what could not (recover.go).
package sqlite
