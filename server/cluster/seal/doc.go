// Package seal encrypts what servers keep in the datastore for each other with a secret that only they have.
//
// It imports nothing of umiak.
package seal
