// Package kv writes what servers keep in the datastore for each other.
//
// It imports nothing of umiak.
package kv

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrRaced means that another server has written first.
var ErrRaced = errors.New("another server has written to the datastore at the same time")

// PutIf writes a key that is at a revision, 0 where it is not there; ErrRaced if it is not.
func PutIf(ctx context.Context, c clientv3.KV, key, value string, revision int64) error {
	resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return fmt.Errorf("write %s in the datastore: %w", key, err)
	}
	if !resp.Succeeded {
		return ErrRaced
	}
	return nil
}
