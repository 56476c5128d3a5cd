// Package rotation replaces the authorities and the ServiceAccount key of several servers while they run.
//
// The datastore holds a record with the stage that is in force, sealed for servers alone. Every server takes a stage
// over as soon as it sees it, and before it serves where it was away; then it reports so, beside the record. The
// server on which an administrator rotates puts the stages there, one after the other:
//
//	announced  the new roots and the new public ServiceAccount key are trusted by all; the old ones sign
//	begun      the new ones sign, with certificates that who trusts only the old root follows; the old ones are trusted
//	settled    the old ones are trusted no more
//
// Any two neighbours of these get on with each other, so a stage is left only when every server has reported it.
// Between begun and settled each server has to be started again once: etcd and clients of Kubernetes read some files
// only then. Nothing else has an order, and whoever was broken off goes on where the record is.
//
// server calls it. It may import server/pki and server/cluster/seal.
package rotation
