package encryption

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/retry"
)

// Config describes the part of one server in rotations.
type Config struct {
	// Server is the name of this server.
	Server string
	// File holds the encryption config of this server's API server.
	File string
	// REST returns the configuration of a client of this server's API server, with all rights.
	REST func() (*rest.Config, error)
	// Datastore connects to the datastore; the caller closes the client.
	Datastore func(ctx context.Context) (*clientv3.Client, error)
	// Share gives a configuration to all servers before any uses it, and puts it into File.
	Share func(ctx context.Context, raw []byte) error
	// Changed yields a value when another server has changed File through Share.
	Changed <-chan struct{}
	Log     *slog.Logger
}

// Rotation replaces the key that the API servers write with. Begin makes the new key on any server; Run, on one server
// at a time, does the rest.
type Rotation struct {
	cfg   Config
	begun lifecycle.Signal
}

// New returns the part of one server. It runs nothing.
func New(cfg Config) *Rotation {
	cfg.Log = cfg.Log.With("component", "encryption")
	return &Rotation{cfg: cfg, begun: lifecycle.NewSignal()}
}

// BeginRequest asks for a rotation.
type BeginRequest struct {
	// Cipher is the type of the new key, one of Ciphers; "" means Default, and any type for a rotation under way.
	Cipher string `json:"cipher,omitempty"`
	// Default is the type of the new key where Cipher is ""; "" means that of the present key.
	Default string `json:"default,omitempty"`
}

// Begin makes a new key that all servers can read, unless a rotation is under way. It returns the progress, which
// Follow continues.
func (r *Rotation) Begin(ctx context.Context, req BeginRequest) (Progress, error) {
	for key, cipher := range map[string]string{"--key-type": req.Cipher, "secrets-encryption-provider": req.Default} {
		if cipher != "" && !slices.Contains(Ciphers, cipher) {
			return Progress{}, fmt.Errorf("%s: %q is not one of %s", key, cipher, strings.Join(Ciphers, ", "))
		}
	}
	client, err := r.cfg.Datastore(ctx)
	if err != nil {
		return Progress{}, err
	}
	defer client.Close() //nolint:errcheck // only a connection
	last, now, err := readProgress(ctx, client)
	if err != nil {
		return Progress{}, err
	}
	c, _, err := load(r.cfg.File)
	if err != nil {
		return Progress{}, err
	}
	if c.phase() != PhaseNone {
		next := c.keys[c.newest()]
		if req.Cipher != "" && req.Cipher != next.Cipher {
			return Progress{}, fmt.Errorf("a rotation to a key of type %s is under way: follow it with `umiak secrets-encrypt rotate` without --key-type", next.Cipher)
		}
		r.begun.Set()
		if last.Done && last.Key == next.Key { // this server has not taken the last step over yet
			return last, nil
		}
		return Progress{Key: next.Key, Step: fmt.Sprintf("going on with the rotation to %s", next), Waiting: last.Waiting,
			Revision: now}, nil
	}
	if err := c.announce(cmp.Or(req.Cipher, req.Default, c.keys[0].Cipher)); err != nil {
		return Progress{}, err
	}
	key := c.keys[len(c.keys)-1].Key
	p := Progress{Key: key, Server: r.cfg.Server, Step: fmt.Sprintf("%s was made; the servers are getting it", key)}
	// Written first: the server that runs the rotation writes the next one as soon as it has the key.
	if p.Revision, err = writeProgress(ctx, client, p); err != nil {
		return Progress{}, err
	}
	if err := r.share(ctx, c); err != nil {
		return Progress{}, err
	}
	r.cfg.Log.Info("the keys of Secrets are rotated", "to", key)
	r.begun.Set()
	return p, nil
}

// Pauses between attempts to go on with a rotation, as while another server is away.
const (
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
)

// Run goes on with each rotation that is under way until it is done, until ctx ends. Of several servers one runs it. A
// step that fails is repeated; the next server, and this one after a restart, continue where the file stands.
func (r *Rotation) Run(ctx context.Context, ready func()) error {
	ready()
	pauses := retry.Backoff{First: firstRetry, Limit: lastRetry}
	var news retry.News
	for {
		err := r.advance(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var again <-chan time.Time
		if err != nil {
			pause := pauses.Next()
			again = time.After(pause)
			if news.Is(err) {
				r.cfg.Log.Warn("the rotation of the keys of Secrets does not go on, trying again", "error", err, "in", pause)
				r.publishFailure(ctx, err)
			}
		} else {
			pauses.Reset()
			news.Is(nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.begun:
		case <-r.cfg.Changed:
		case <-again:
		}
	}
}

// advance finishes the rotation that is under way, if one is. An encryption config of another form is left alone.
func (r *Rotation) advance(ctx context.Context) error {
	c, _, err := load(r.cfg.File)
	if errors.Is(err, ErrForeign) {
		return nil
	}
	if err != nil {
		return err
	}
	client, err := r.cfg.Datastore(ctx)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // only a connection
	if c.phase() == PhaseNone {
		last, _, err := readProgress(ctx, client)
		if err != nil || last.Done || last.Key != c.keys[0].Key {
			return err
		}
		return r.done(ctx, client, c) // it was interrupted after its last step
	}
	attempt := run{Rotation: r, store: client, key: c.keys[c.newest()].Key}
	if c.phase() == PhaseAnnounced {
		if err := r.share(ctx, c); err != nil {
			return err
		}
		if err := r.waitLoaded(ctx); err != nil {
			return err
		}
		c.promote()
		if err := r.share(ctx, c); err != nil {
			return err
		}
		if err := attempt.publish(ctx, "%s is written with from now on", c.keys[0]); err != nil {
			return err
		}
	} else if err := r.share(ctx, c); err != nil {
		return err
	}
	if err := r.waitLoaded(ctx); err != nil {
		return err
	}
	if err := attempt.rewriteAll(ctx, c); err != nil {
		return err
	}
	c.retire()
	if err := r.share(ctx, c); err != nil {
		return err
	}
	return r.done(ctx, client, c)
}

// done waits until all servers use the new key alone, and publishes that the rotation is done.
func (r *Rotation) done(ctx context.Context, client clientv3.KV, c *config) error {
	if err := r.waitLoaded(ctx); err != nil {
		return err
	}
	key := c.keys[0].Key
	_, err := writeProgress(ctx, client, Progress{Key: key, Server: r.cfg.Server, Done: true,
		Step: fmt.Sprintf("the old key is gone; everything is stored with %s", key)})
	if err == nil {
		r.cfg.Log.Info("the keys of Secrets were rotated", "to", key)
	}
	return err
}

// share gives a configuration to every server.
func (r *Rotation) share(ctx context.Context, c *config) error {
	raw, err := c.encode()
	if err != nil {
		return err
	}
	return r.cfg.Share(ctx, raw)
}

// run is one attempt to finish a rotation.
type run struct {
	*Rotation
	store *clientv3.Client
	key   Key
}

// publish makes a step of the rotation known to those who follow it.
func (r run) publish(ctx context.Context, format string, a ...any) error {
	_, err := writeProgress(ctx, r.store, Progress{Key: r.key, Server: r.cfg.Server, Step: fmt.Sprintf(format, a...)})
	return err
}

// rewriteAll makes the API server store everything with the new key, and verifies that nothing needs an old one.
func (r run) rewriteAll(ctx context.Context, c *config) error {
	rc, err := r.cfg.REST()
	if err != nil {
		return err
	}
	rc.QPS = -1 // writers is the limit
	objects, err := metadata.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	for _, resource := range c.resources {
		if err := r.rewrite(ctx, objects, resource); err != nil {
			return err
		}
	}
	counts, err := Count(ctx, r.store, c.resources)
	if err != nil {
		return fmt.Errorf("%w; the old key stays", err)
	}
	if n := counts.others(r.key); n > 0 {
		return fmt.Errorf("%d objects are not stored with %s yet; the old key stays", n, r.key)
	}
	return nil
}
