package cluster

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
)

// Errors of a datastore with a cluster that is not Umiak's.
var (
	errK3s = errors.New("the datastore holds a cluster of k3s, and umiak does not take it over: nothing was changed; " +
		"name another database, or an empty etcd, in datastore-endpoint, and apply the manifests of the workloads there")
	errNotUmiak = errors.New("the datastore holds a Kubernetes cluster that umiak did not make: nothing was changed; " +
		"name another database, or an empty etcd, in datastore-endpoint")
)

// k3sPrefix is the prefix of the keys in which k3s stores its authorities, encrypted with its token: Save in
// pkg/cluster/storage.go.
const k3sPrefix = "/bootstrap/"

// refuseForeign returns an error if the datastore holds a cluster of another distribution. It only reads. A database of
// the user (external) that has objects of Kubernetes has Umiak's record as well: Claim writes that first.
func refuseForeign(ctx context.Context, c clientv3.KV, external bool) error {
	k3s, err := holds(ctx, c, k3sPrefix)
	switch {
	case err != nil:
		return err
	case k3s:
		return errK3s
	case !external: // the keys of another datastore of this server may have been copied into it
		return nil
	}
	if ours, err := holds(ctx, c, sharedfiles.Key); err != nil || ours {
		return err
	}
	objects, err := holds(ctx, c, "/registry/namespaces/")
	if err == nil && objects {
		err = errNotUmiak
	}
	return err
}

// holds reports whether the datastore has keys that begin with prefix. Keys that this server may not read do not count:
// etcd may allow it those of Umiak and of Kubernetes alone.
func holds(ctx context.Context, c clientv3.KV, prefix string) (bool, error) {
	r, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read what the datastore holds: %w", err)
	}
	return len(r.Kvs) > 0, nil
}
