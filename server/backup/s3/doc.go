// Package s3 stores files in a bucket of an S3 server, Amazon's or any compatible one.
//
// An object is a file under its name, with a description and the file's SHA-256 as metadata. Upload never overwrites
// different content, and a download gets its name once it is complete. Errors name the server, the bucket and the
// object, never the key. The package imports minio-go and internal/; server/backup calls it.
package s3
