// Package snapshot writes and reads backups of a cluster: one file with every key of the datastore, the
// authorities' keys, the encryption configuration and the tokens.
//
// The content is logical (keys with their values, revisions and leases), so a snapshot does not depend on
// the backend or the machine that it came from. A file is laid out as
//
//	"UMIAKSN1" | length, manifest as JSON | records, compressed, perhaps encrypted | counts | SHA-256 | "UMIAKEND"
//
// The manifest and the counts can be read without the passphrase. The checksum covers all that stands
// before it; a record that ends the stream says how many there must have been. Compression is zstd,
// encryption age's with a passphrase (scrypt, ChaCha20-Poly1305 in chunks).
//
// It imports datastore/sqlite, because what is restored is a SQLite file, and internal/. What calls it is
// server/backup and `umiak snapshot`.
package snapshot
