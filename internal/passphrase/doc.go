// Package passphrase encrypts and decrypts with a secret that a person may have chosen: age's format, with a key that
// scrypt derives from the secret. It decides how much memory and time a derivation costs, from the memory of the
// machine.
//
// It imports age alone. Snapshots (datastore/snapshot) and the record of the servers' keys
// (server/cluster/sharedfiles) use it.
package passphrase
