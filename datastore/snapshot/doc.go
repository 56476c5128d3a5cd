// Package snapshot writes, reads and restores backups of a cluster: one file with the keys of the datastore, the
// certificate authorities, the encryption configuration, the tokens and the user's manifests.
//
// The content is logical (keys with their values, revisions and leases), so a snapshot depends neither on the backend
// nor on the machine that it came from. The layout of a file is
//
//	"UMIAKSN1" | length, manifest as JSON | records, compressed, perhaps encrypted | counts | SHA-256 | "UMIAKEND"
//
// The manifest and the counts can be read without the passphrase. The checksum covers everything before it. The last
// record has the numbers of keys and files. Compression is zstd, encryption is that of age with a passphrase (scrypt,
// ChaCha20-Poly1305 in chunks).
//
// The package imports datastore/sqlite, since a restored datastore is a SQLite file, and internal/. Package datastore,
// server/backup and `umiak snapshot` call it.
package snapshot
