package external

import (
	"context"
	"sync"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// trueCreates is one of kine's SQL drivers (v0.17.5) whose creates answer with what is stored.
//
// Its LogStructured.Create loses the revision of a key that is created again after it was deleted: the second
// Append's is assigned to a variable of the inner block, and the newest revision that the driver knows of takes
// its place. While others write, or just when the watches come to it, that is one before or after the key's own:
// a wrong resourceVersion for the API server's client. And where the first Append failed and there is no
// such key, it says that it created one. Here what is there is read after each create.
type trueCreates struct{ server.Backend }

// truthful makes a Constructor of a driver's that tells the truth.
func truthful(drive drivers.Constructor) drivers.Constructor {
	return func(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (bool, server.Backend, error) {
		elect, b, err := drive(ctx, wg, cfg)
		if err != nil {
			return false, nil, err
		}
		return elect, trueCreates{b}, nil
	}
}

// Create is server.Backend's. Where others have changed the key already, its create's revision is still
// that one; where they have deleted it, nobody knows, and the error is for a client who tries again.
func (c trueCreates) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	rev, err := c.Backend.Create(ctx, key, value, lease)
	if err != nil {
		return rev, err
	}
	_, kv, err := c.Get(ctx, key, 0, true)
	if err != nil {
		return 0, err
	}
	if kv == nil {
		return 0, status.Errorf(codes.Unavailable, "create %s: it is not in the database afterwards: not written, or deleted since", key)
	}
	return kv.CreateRevision, nil
}
