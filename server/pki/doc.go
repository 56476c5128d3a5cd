// Package pki makes and renews the identities of the control plane: four certificate authorities that share nothing
// (server, client, request-header, etcd), the key that signs ServiceAccount tokens, leaf certificates and kubeconfigs.
//
// Everything is ECDSA P-256: a key takes a tenth of a millisecond where an RSA one takes a tenth of a
// second or, on a small board, several. Leaf certificates live 90 days and are renewed by the running
// process when a third of that remains; their keys stay, so that a renewal replaces one file and a
// reader never finds a key and a certificate that do not belong together.
//
// An authority is replaced with an overlap, see BeginRotation: the old one certifies the new one's key, and
// is trusted until FinishRotation. The state of a rotation follows from the files alone.
//
// Clocks of small boards are wrong at boot, so certificates are valid from 1970 on: a clock that is behind never locks
// the cluster out of itself. Only the ends of certificates count.
//
// The package imports nothing of Kubernetes. server/ calls it.
package pki
