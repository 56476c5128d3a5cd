// Package sqlite is a durable revisioned key space in one SQLite file: a write is acknowledged once it has been
// synced to disk, and writers that wait at the same time share one sync.
//
// It implements kine's Backend, so that kine's server package serves it as etcd. kine's own SQL log is not used: it
// reports success for a create that failed because the disk was full, returns an interrupted list as a complete one,
// stores every value twice under seven b-trees, and polls.
//
// Files in the folder: state.db, state.db-wal, state.db-shm, lock, and broken-TIME/ for damaged files. A lock on the
// file "lock" ensures that one process uses the folder at a time.
//
// How it works. The table log has a row per revision. The key space at revision R is, for each key, its newest row
// not newer than R. All changes go through one goroutine on one connection (writer.go), which commits all waiting
// writes in one transaction, publishes their events (hub), then answers. Readers have a few connections of their own
// and only short transactions, so that the write-ahead log can always be emptied (maintain.go). Compact stores its
// revision durably, and a sweeper removes rows in small batches behind it, which continues after a restart
// (compact.go). A file is checked when it is opened (check.go). The readable rows of a damaged one are copied into a
// new file, with a report of the lost ones (recover.go).
//
// It imports kine's server interface, modernc.org/sqlite, datastore/internal/ and, of internal/, atomicfile, filelock
// and listing. Packages datastore and snapshot call it.
package sqlite
