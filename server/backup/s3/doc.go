// Package s3 keeps files in a bucket of an S3 server: of Amazon or of anyone who speaks the same protocol.
//
// An object is a file under its name, with a description and the file's SHA-256 beside it. Nothing is
// overwritten with something else, and what is downloaded has its name only when it is whole. Every error
// names the server, the bucket and the object, none the key. It imports minio-go and internal/; server/backup
// calls it.
package s3
