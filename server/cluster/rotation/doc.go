// Package rotation replaces the authorities and the ServiceAccount key of several servers while they run.
//
// The datastore holds a record with the stage that is in force, sealed for servers alone. Every server takes a stage
// over as soon as it sees it, or before it serves where it was away; then it reports that beside the record. The server
// on which an administrator rotates writes the stages, one after the other:
//
//	announced  the new roots and the new public ServiceAccount key are trusted by all; the old ones sign
//	begun      the new ones sign, with certificates that chain to the old root too; the old ones are trusted
//	settled    the old ones are trusted no more
//
// Servers at two neighbouring stages work together, so a stage ends only when every server has reported it. Between
// begun and settled each server has to be restarted once: etcd and clients of Kubernetes read some files only at their
// start. Nothing else has an order; an interrupted rotation continues at the stage of the record.
//
// server calls it. It may import server/pki and server/cluster/seal.
package rotation
