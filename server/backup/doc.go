// Package backup creates snapshots on a schedule and on request, and stores them in a folder and, if configured, in a
// bucket.
//
// datastore/snapshot creates snapshots, server/backup/s3 transfers them. The package imports those and internal/. The
// server runs a Keeper as one of its parts; cmd/umiak uses it for its commands.
package backup
