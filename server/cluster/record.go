package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/cluster/kv"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
)

// errForeign means that the datastore belongs to another cluster.
var errForeign = errors.New("the datastore holds another cluster than the one whose keys are in data-dir/server/pki; with its " +
	"server token as `token`, and without that folder, this server joins it. If it was a server of this cluster: the " +
	"cluster's keys were replaced while it was away; run `umiak cleanup --purge`, and let it join again")

// errSettings means that this server would give nodes other settings than the other servers do.
var errSettings = errors.New("this server's settings are not those of the others")

// Bounds of the pause between attempts to write the record, and the pause from which on a failure is logged.
const (
	minWriteDelay = 100 * time.Millisecond
	logWriteDelay = time.Second
	maxWriteDelay = 30 * time.Second
)

// KeyRecord maintains the record that the datastore holds of the cluster: its CA, its settings and, sealed with the
// server token, its keys.
type KeyRecord struct {
	cfg         Config
	peers       *Peers
	authorities *Authorities
	encryption  *encryption.Sharing
	stale       lifecycle.Signal
	log         *slog.Logger

	filesInForce bool // as Prepare has found it
}

var _ storage.Claimer = (*KeyRecord)(nil)

// readRecord returns the record in the datastore and its revision, 0 where there is none.
func readRecord(ctx context.Context, c clientv3.KV) (r sharedfiles.Record, revision int64, err error) {
	resp, err := c.Get(ctx, sharedfiles.Key)
	if err != nil {
		return r, 0, fmt.Errorf("read the cluster's record: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return r, 0, nil
	}
	r, err = sharedfiles.Parse(resp.Kvs[0].Value)
	return r, resp.Kvs[0].ModRevision, err
}

func writeRecord(ctx context.Context, c clientv3.KV, r sharedfiles.Record, revision int64) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	return kv.PutIf(ctx, c, sharedfiles.Key, string(raw), revision)
}

func (r *KeyRecord) caHash() (current string, former []string, err error) {
	return joinapi.CAHash(r.cfg.PKI.CAPEM(pki.ServerCA))
}

// Prepare finds out, before the datastore is opened, whose keys are in force.
func (r *KeyRecord) Prepare() { r.filesInForce = r.authorities.filesInForce() }

// Claim makes the datastore this cluster's before anything is written there, or finds that it is another's: two servers
// may start with an empty database at once. Then all keys become those of the record: they may have been rotated while
// this server was away. It returns storage.ErrReopen where the datastore has been opened with certificates that are not
// in force.
func (r *KeyRecord) Claim(ctx context.Context, c *clientv3.Client) error {
	if err := refuseForeign(ctx, c, r.cfg.Shared == joinwire.External); err != nil {
		return err
	}
	own := r.filesInForce
	again, sealed := r.authorities.claim(ctx, c, own)
	if sealed != nil && !errors.Is(sealed, rotation.ErrSealed) {
		return sealed
	}
	for {
		ca, former, err := r.caHash()
		if err != nil {
			return err
		}
		have, revision, err := readRecord(ctx, c)
		switch {
		case err != nil:
			return err
		case sealed != nil && revision == 0:
			// Another server with other keys was faster with those, and is about to write the record: it is that
			// one's cluster.
			return errForeign
		case revision == 0 || own && have.CA != ca:
			want := sharedfiles.Record{CA: ca, Settings: r.cfg.Settings}
			if err := writeRecord(ctx, c, want, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
				return err
			}
			own = false
		case have.CA != ca && !slices.Contains(former, have.CA):
			return errForeign
		case sealed != nil:
			return fmt.Errorf("%w: run `umiak cleanup --purge` and let this server join again", sealed)
		case again:
			return storage.ErrReopen
		default:
			return r.encryption.Sync(ctx, c)
		}
	}
}

// Changed makes Run compare the record with the keys and the token again.
func (r *KeyRecord) Changed() { r.stale.Set() }

// Run writes the record whenever it is not as it should be, until ctx ends.
func (r *KeyRecord) Run(ctx context.Context, ready func()) error {
	ready()
	for {
		if err := r.insist(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.stale:
		}
	}
}

// insist writes the record until that succeeds or ctx ends. At the first start the API server makes kube-system at
// about the same time, and a disk may be full for a while. It fails only where the settings of this server are wrong.
func (r *KeyRecord) insist(ctx context.Context) error {
	for pauses := (retry.Backoff{First: minWriteDelay, Limit: maxWriteDelay}); ; {
		err := r.publish(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errSettings) {
			return err
		}
		pause := pauses.Next()
		if pause > logWriteDelay {
			r.log.Warn("cannot prepare joining yet, trying again", "error", err)
		}
		if retry.Sleep(ctx, pause) != nil {
			return nil
		}
	}
}

// publish writes the record where it is not as it should be.
func (r *KeyRecord) publish(ctx context.Context) error {
	c, err := r.cfg.Datastore.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	have, revision, err := readRecord(ctx, c)
	if err != nil {
		return err
	}
	want, changed, err := r.next(have)
	if err != nil || !changed {
		return err
	}
	if diff := joinwire.Differences(have.Settings, want.Settings); len(diff) > 0 {
		if list, _ := r.peers.List(); len(list) > 0 {
			return fmt.Errorf("%w, of which %s run: %s", errSettings, strings.Join(list, ", "), joinapi.Describe(diff))
		}
	}
	return writeRecord(ctx, c, want, revision)
}

// next returns what the record should be. Without a server token whose secret is known here it has no keys: the token
// was revoked, or rotated from a machine that is no server. They are sealed again once there is a token.
func (r *KeyRecord) next(have sharedfiles.Record) (want sharedfiles.Record, changed bool, err error) {
	ca, _, err := r.caHash()
	if err != nil {
		return want, false, err
	}
	want = sharedfiles.Record{CA: ca, Settings: r.cfg.Settings}
	same := have.CA == want.CA && slices.Equal(have.Settings, want.Settings)
	raw, err := os.ReadFile(r.cfg.Dirs.ServerToken())
	if errors.Is(err, fs.ErrNotExist) {
		// The token that the keys are sealed with was revoked: its holders must not open them any more.
		return want, !same || have.Sealed != nil, nil
	}
	if err != nil {
		return want, false, fmt.Errorf("read the server token: %w", err)
	}
	tok, err := token.Parse(string(raw))
	if err != nil {
		return want, false, fmt.Errorf("read the server token: %w", err)
	}
	files, err := sharedfiles.Collect(r.cfg.Dirs)
	if err != nil {
		return want, false, err
	}
	seal, err := sharedfiles.SealOf(files, tok.Secret)
	if err != nil || same && have.Seal == seal {
		return want, false, err
	}
	return want, true, want.Put(files, tok.Secret)
}
