package encryption

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/server/cluster/kv"
)

// progressKey is the key in the datastore with the progress of the last rotation, so that a command on any server
// follows it, also after the server that runs it has been replaced. It holds no secret.
const progressKey = "/umiak/encryption-progress"

// Progress describes how far a rotation is.
type Progress struct {
	// Key is the new key.
	Key Key `json:"key"`
	// Server is the name of the server that wrote this.
	Server string `json:"server,omitempty"`
	// Step is the last step that was taken, for a person.
	Step string `json:"step,omitempty"`
	// Waiting is the reason why the rotation does not go on at the moment; it is tried again.
	Waiting string `json:"waiting,omitempty"`
	// Done means that everything is stored with Key and no other key is left.
	Done bool `json:"done,omitempty"`
	// Revision is the datastore's revision of this progress.
	Revision int64 `json:"revision,omitempty"`
}

// FollowRequest asks for the progress that follows a revision.
type FollowRequest struct {
	After int64 `json:"after"`
}

// readProgress returns the progress of the last rotation, zero where there is none, and the datastore's revision.
func readProgress(ctx context.Context, c clientv3.KV) (p Progress, now int64, err error) {
	resp, err := c.Get(ctx, progressKey)
	if err != nil {
		return p, 0, fmt.Errorf("read the progress of the rotation: %w", err)
	}
	if len(resp.Kvs) > 0 {
		p, err = parseProgress(resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
	}
	return p, resp.Header.Revision, err
}

// parseProgress decodes the progress in the datastore.
func parseProgress(raw []byte, revision int64) (p Progress, err error) {
	if err := json.Unmarshal(raw, &p); err != nil {
		return Progress{}, fmt.Errorf("read %s in the datastore: %w", progressKey, err)
	}
	p.Revision = revision
	return p, nil
}

// writeProgress replaces the progress and returns its revision.
func writeProgress(ctx context.Context, c clientv3.KV, p Progress) (int64, error) {
	p.Revision = 0
	raw, err := json.Marshal(p)
	if err != nil {
		return 0, fmt.Errorf("encode the progress of the rotation: %w", err)
	}
	for {
		resp, err := c.Get(ctx, progressKey)
		if err != nil {
			return 0, fmt.Errorf("read the progress of the rotation: %w", err)
		}
		var revision int64
		if len(resp.Kvs) > 0 {
			revision = resp.Kvs[0].ModRevision
		}
		err = kv.PutIf(ctx, c, progressKey, string(raw), revision)
		if err == nil {
			p, _, err := readProgress(ctx, c)
			return p.Revision, err
		}
		if !errors.Is(err, kv.ErrRaced) {
			return 0, err
		}
	}
}

// publishFailure adds the reason why the rotation does not go on to its progress.
func (r *Rotation) publishFailure(ctx context.Context, reason error) {
	c, err := r.cfg.Datastore(ctx)
	if err == nil {
		defer c.Close() //nolint:errcheck // only a connection
		var p Progress
		if p, _, err = readProgress(ctx, c); err == nil && p.Step != "" && !p.Done {
			p.Server, p.Waiting = r.cfg.Server, reason.Error()
			_, err = writeProgress(ctx, c, p)
		}
	}
	if err != nil {
		r.cfg.Log.Debug("cannot publish why the rotation of the keys of Secrets does not go on", "error", err)
	}
}

// followTimeout bounds how long Follow repeats what fails, as while the datastore has no leader.
const followTimeout = time.Minute

// Follow waits for the progress that follows a revision.
func (r *Rotation) Follow(ctx context.Context, req FollowRequest) (p Progress, err error) {
	giveUp := time.Now().Add(followTimeout)
	var final error
	err = retry.Do(ctx, retry.Backoff{Limit: 5 * time.Second}, nil, func(ctx context.Context) error {
		began := time.Now()
		var err error
		if p, err = r.next(ctx, req.After); err == nil {
			return nil
		}
		if time.Since(began) > followTimeout/2 { // the watch worked until then
			giveUp = time.Now().Add(followTimeout)
		}
		if time.Now().After(giveUp) {
			final, err = err, nil
		}
		return err
	})
	return p, errors.Join(err, final)
}

// next returns the first progress after a revision, or the present one where the datastore has that one no more.
func (r *Rotation) next(ctx context.Context, after int64) (Progress, error) {
	c, err := r.cfg.Datastore(ctx)
	if err != nil {
		return Progress{}, err
	}
	defer c.Close() //nolint:errcheck // only a connection
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range c.Watch(clientv3.WithRequireLeader(ctx), progressKey, clientv3.WithRev(after+1)) {
		if resp.CompactRevision > after {
			p, _, err := readProgress(ctx, c)
			return p, err
		}
		if err := resp.Err(); err != nil {
			return Progress{}, fmt.Errorf("watch the progress of the rotation: %w", err)
		}
		for _, e := range resp.Events {
			if e.Type == clientv3.EventTypePut {
				return parseProgress(e.Kv.Value, e.Kv.ModRevision)
			}
		}
	}
	return Progress{}, errors.New("watch the progress of the rotation: the watch has ended")
}
