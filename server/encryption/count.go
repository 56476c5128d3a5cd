package encryption

import (
	"bytes"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Counts holds, for each resource, how many objects are stored with which key, as "secretbox key1".
type Counts map[string]map[string]int

// The keys of Counts for objects that are not stored with a key of this package.
const (
	Unencrypted = "unencrypted" // stored in the clear
	Unknown     = "unknown"     // another form of encryption
)

// others returns how many objects are stored with something else than the key.
func (c Counts) others(k Key) int {
	n := 0
	for _, keys := range c {
		for name, count := range keys {
			if name != k.String() {
				n += count
			}
		}
	}
	return n
}

const (
	// page bounds the objects of which the metadata is read at once.
	page = 100
	// storedPage bounds the stored objects that are read at once, of which each may have a megabyte.
	storedPage = 10
)

// Count counts the stored objects of the resources by the key that encrypts them.
func Count(ctx context.Context, c clientv3.KV, resources []string) (Counts, error) {
	out := Counts{}
	for _, r := range resources {
		keys := map[string]int{}
		prefix := "/registry/" + r + "/"
		end := clientv3.GetPrefixRangeEnd(prefix)
		for from, rev := prefix, int64(0); ; {
			resp, err := c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(storedPage), clientv3.WithRev(rev))
			if err != nil {
				return nil, fmt.Errorf("count stored %s: %w", r, err)
			}
			for _, kv := range resp.Kvs {
				keys[keyOf(kv.Value)]++
			}
			if !resp.More || len(resp.Kvs) == 0 {
				break
			}
			from, rev = string(resp.Kvs[len(resp.Kvs)-1].Key)+"\x00", resp.Header.Revision
		}
		out[r] = keys
	}
	return out, nil
}

// keyOf returns the key named in the prefix that the API server writes before an encrypted value:
// k8s:enc:CIPHER:v1:NAME:
func keyOf(value []byte) string {
	rest, ok := bytes.CutPrefix(value, []byte("k8s:enc:"))
	if !ok {
		return Unencrypted
	}
	parts := bytes.SplitN(rest[:min(len(rest), 256)], []byte(":"), 4)
	if len(parts) < 4 || string(parts[1]) != "v1" {
		return Unknown
	}
	return Key{Name: string(parts[2]), Cipher: string(parts[0])}.String()
}
