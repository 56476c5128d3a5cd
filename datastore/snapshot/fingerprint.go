package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"go.etcd.io/etcd/api/v3/mvccpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// volatile are keys that no snapshot holds: what they say is over when it is restored. A single server
// keeps the first two in memory in the first place.
var volatile = [][]byte{
	[]byte("/registry/leases/"), []byte("/registry/events/"), []byte("/registry/masterleases/"), []byte("compact_rev_key"),
}

// Volatile says whether a key is left out of snapshots.
func Volatile(key []byte) bool {
	for _, p := range volatile {
		if bytes.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// Fingerprint tells whether two snapshots would hold the same. It disregards that nodes say every five
// minutes that they are still there, so an idle cluster has one fingerprint.
type Fingerprint struct{ h hash.Hash }

// NewFingerprint returns one of nothing.
func NewFingerprint() *Fingerprint { return &Fingerprint{sha256.New()} }

var nodes = []byte("/registry/minions/")

// Key adds a key.
func (f *Fingerprint) Key(kv *mvccpb.KeyValue) {
	if bytes.HasPrefix(kv.Key, nodes) {
		if b, ok := lasting(kv.Value); ok {
			f.add(kv.Key, b)
			return
		}
	}
	f.add(kv.Key, binary.BigEndian.AppendUint64(nil, uint64(kv.ModRevision)))
}

// File adds a file.
func (f *Fingerprint) File(file File) { f.add([]byte(file.Name), file.Data) }

// Sum is the fingerprint of what was added.
func (f *Fingerprint) Sum() []byte { return f.h.Sum(nil) }

func (f *Fingerprint) add(parts ...[]byte) {
	for _, p := range parts {
		f.h.Write(binary.AppendUvarint(nil, uint64(len(p))))
		f.h.Write(p)
	}
}

// lasting is a stored Node without its heartbeat.
func lasting(value []byte) ([]byte, bool) {
	raw, ok := bytes.CutPrefix(value, []byte("k8s\x00"))
	if !ok {
		return nil, false
	}
	var u runtime.Unknown
	var n corev1.Node
	if u.Unmarshal(raw) != nil || n.Unmarshal(u.Raw) != nil {
		return nil, false
	}
	n.ResourceVersion, n.ManagedFields = "", nil
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	out, err := n.Marshal()
	return out, err == nil
}
