// Package backup decides when snapshots are made, on a schedule and when root asks the running server, and
// keeps them in the folder and, where one is set, in a bucket.
//
// datastore/snapshot knows how a snapshot is made, server/backup/s3 how it gets into a bucket. It imports
// those and internal/; the server runs a Keeper as one of its parts, and cmd/umiak reads what is planned.
package backup
