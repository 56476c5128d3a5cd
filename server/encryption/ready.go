package encryption

import (
	"context"
	"fmt"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/kubeclient"
)

// How long a command waits for the API server of this machine: while it starts, it refuses also administrators, whose
// rights it has not read yet; and it does not answer for a moment while umiak executes itself anew.
const (
	readyTimeout  = time.Minute
	absentTimeout = 10 * time.Second
	readyPoll     = 500 * time.Millisecond
)

// awaitReady waits for the API server of this machine.
func (k *Keeper) awaitReady(ctx context.Context) error {
	c, err := kubeclient.Of(k.REST)
	if err != nil {
		return err
	}
	return awaitReady(ctx, c.Discovery().RESTClient(), k.Progress)
}

// awaitReady waits until an API server says that it is ready.
func awaitReady(ctx context.Context, c rest.Interface, progress func(format string, a ...any)) error {
	begun, said := time.Now(), false
	for {
		attempt, cancel := context.WithTimeout(ctx, readyTimeout)
		err := c.Get().AbsPath("/readyz").Do(attempt).Error()
		cancel()
		if err == nil {
			return nil
		}
		limit := readyTimeout
		if utilnet.IsConnectionRefused(err) {
			limit = absentTimeout
		}
		if ctx.Err() != nil || time.Since(begun) > limit {
			return fmt.Errorf("ask the API server whether it is ready (umiak has to run): %w", err)
		}
		if !said {
			said = true
			progress("waiting for the API server to be ready")
		}
		select {
		case <-ctx.Done():
		case <-time.After(readyPoll):
		}
	}
}
