// Package s3server runs a real S3 server for tests: versitygw, which stores objects as files and verifies signatures.
// scripts/test installs it into .cache/bin. Tests of server/backup and e2e call it.
package s3server
