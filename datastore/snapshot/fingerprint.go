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

// volatilePrefixes are the prefixes of keys that are not in snapshots, since they have no meaning after a restore. A
// single server stores the first two in memory anyway.
var volatilePrefixes = [][]byte{
	[]byte("/registry/leases/"), []byte("/registry/events/"), []byte("/registry/masterleases/"),
	[]byte("compact_rev_key"),
}

// isVolatile reports whether a key is left out of snapshots.
func isVolatile(key []byte) bool {
	for _, p := range volatilePrefixes {
		if bytes.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// fingerprint is a hash of the content of a snapshot. It ignores the heartbeats in the status of Nodes, so it does not
// change in an idle cluster.
type fingerprint struct{ h hash.Hash }

// newFingerprint returns the fingerprint of no content.
func newFingerprint() *fingerprint { return &fingerprint{sha256.New()} }

// nodePrefix is the prefix of the keys of Nodes.
var nodePrefix = []byte("/registry/minions/")

// Key adds a key.
func (f *fingerprint) Key(kv *mvccpb.KeyValue) {
	if bytes.HasPrefix(kv.Key, nodePrefix) {
		if b, ok := withoutHeartbeat(kv.Value); ok {
			f.add(kv.Key, b)
			return
		}
	}
	f.add(kv.Key, binary.BigEndian.AppendUint64(nil, uint64(kv.ModRevision)))
}

// File adds a file.
func (f *fingerprint) File(file File) { f.add([]byte(file.Name), file.Data) }

// Sum returns the hash of what was added.
func (f *fingerprint) Sum() []byte { return f.h.Sum(nil) }

func (f *fingerprint) add(parts ...[]byte) {
	for _, p := range parts {
		f.h.Write(binary.AppendUvarint(nil, uint64(len(p))))
		f.h.Write(p)
	}
}

// withoutHeartbeat returns a stored Node without its heartbeats, false if it is not a Node in protobuf.
func withoutHeartbeat(value []byte) ([]byte, bool) {
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
