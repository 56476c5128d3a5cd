package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// ErrReopen is the error of Claimer.Claim where the datastore was opened with certificates that are not in force any
// more.
var ErrReopen = errors.New("the datastore has to be opened again")

// claimTimeout bounds Claimer.Claim.
const claimTimeout = 30 * time.Second

// Claimer makes sure, each time the datastore has been opened and before anything else uses it, that it is this
// cluster's, and takes over from it what the servers share.
type Claimer interface {
	// Prepare is called before the datastore is opened: opening may change what it looks at.
	Prepare()
	// Claim is called when the datastore answers.
	Claim(ctx context.Context, c *clientv3.Client) error
}

// Config describes the datastore that a Runner runs.
type Config struct {
	Datastore datastore.Config
	// Current is set when the datastore is open.
	Current *Current
	// Opened is called with a datastore that is open and does not serve yet.
	Opened func(datastore.Store)
	// Claimer is nil where no other server can use the datastore.
	Claimer Claimer
	// Failing is called with true when the datastore stops taking writes, and with false when it takes them again; it
	// may be nil.
	Failing func(bool)
	Log     *slog.Logger
}

// Runner opens and serves the datastore.
type Runner struct{ cfg Config }

// New returns a runner; nothing is opened yet.
func New(cfg Config) *Runner {
	cfg.Log = cfg.Log.With("component", "datastore")
	cfg.Datastore.Log, cfg.Datastore.Failing = cfg.Log, cfg.Failing
	return &Runner{cfg}
}

// Run opens the datastore and serves it until ctx ends. An error ends the process, unless the disk is full or the
// datastore has been open in this process before, as a database that fails over.
func (r *Runner) Run(ctx context.Context, ready func()) error {
	for {
		before := r.cfg.Current.Store()
		err := r.serve(ctx, ready)
		dir := r.cfg.Datastore.Dir
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case full(err) && errors.Is(err, etcd.ErrBroken):
			return &lifecycle.ReexecError{Part: "datastore", Err: fmt.Errorf("the disk of %s is full, free some space: %w", dir, err)}
		case full(err):
			return fmt.Errorf("the disk of %s is full, free some space: %w", dir, err)
		case errors.Is(err, ErrReopen):
		case before != nil && before == r.cfg.Current.Store():
			return err
		default:
			return lifecycle.Permanent(err)
		}
		if r.cfg.Failing != nil {
			r.cfg.Failing(false) // the datastore that is opened next reports its own state
		}
		r.cfg.Log.Info("the datastore is opened again with the certificates that were taken over")
	}
}

// full reports whether a datastore has ended because its disk is full. Of such an error etcd returns only the text.
func full(err error) bool {
	if errors.Is(err, datastore.ErrFull) {
		return true
	}
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

func (r *Runner) serve(ctx context.Context, ready func()) error {
	if why := r.unprotected(); why != "" {
		r.cfg.Log.Warn("the database is not protected: whoever can intercept the connection can change everything in the "+
			"cluster, and become its administrator; set datastore-cafile", "why", why)
	}
	if r.cfg.Claimer != nil {
		r.cfg.Claimer.Prepare()
	}
	st, err := datastore.Open(ctx, r.cfg.Datastore)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.cfg.Current.set(st)
	r.cfg.Opened(st)
	if r.cfg.Claimer == nil {
		return st.Run(ctx, ready)
	}
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	err = st.Run(run, func() {
		if err := r.claim(run, st); err != nil {
			fail(err)
			return
		}
		ready()
	})
	if cause := context.Cause(run); ctx.Err() == nil && cause != nil {
		err = errors.Join(cause, err)
	}
	return err
}

func (r *Runner) claim(ctx context.Context, st datastore.Store) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	return r.cfg.Claimer.Claim(ctx, c)
}

// unprotected returns what is wrong with the connection to an external database, "" if nothing is.
func (r *Runner) unprotected() string {
	return external.Unprotected(r.cfg.Datastore.Endpoint, r.cfg.Datastore.TLS)
}

// Once opens a datastore, calls use, and closes it.
func Once(ctx context.Context, cfg datastore.Config, use func(datastore.Store) error) (err error) {
	st, err := datastore.Open(ctx, cfg)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(run, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		stop()
		return err
	}
	err = use(st)
	stop()
	return errors.Join(err, <-done)
}
