package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/server/cluster/kv"
	"github.com/umiak-io/umiak/server/pki"
)

// Config describes this server.
type Config struct {
	Name, Version string
	PKI           *pki.PKI
	// Servers returns the names of the servers that have to report; nil where those are the servers with a report.
	Servers func() []string
	// TakenOver is called when a stage is in force here, before that is reported: by Claim, and when another one is.
	TakenOver func(*Record)
	Log       *slog.Logger
	Now       func() time.Time // time.Now
}

// Client reaches the datastore.
type Client interface {
	clientv3.KV
	clientv3.Watcher
}

// Member is one server's part in rotations.
type Member struct {
	cfg     Config
	started time.Time

	mu    sync.Mutex // one stage at a time
	since int64
}

// New makes the part of a server that starts.
func New(cfg Config) *Member {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Member{cfg: cfg, started: cfg.Now().UTC()}
}

// ErrStarting means that this server has not looked at the record yet.
var ErrStarting = errors.New("this server is starting, try again")

// Claim makes sure, before this server serves, that its keys are those of the record, or begins the record with its
// own. With own the keys of this server replace the record: they are of a cluster of one server. It reports whether it
// has replaced files, so that their readers read them again.
func (m *Member) Claim(ctx context.Context, c clientv3.KV, own bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		files, err := m.cfg.PKI.Shared()
		if err != nil {
			return false, err
		}
		rec, revision, err := m.read(ctx, c, files)
		sealed := errors.Is(err, ErrSealed)
		switch {
		case err != nil && (!sealed || !own):
			return false, err
		case rec == nil, own && (sealed || !rec.Files.Equal(files)):
			first := First(files)
			if rec != nil {
				first.Epoch += rec.Epoch
			}
			first.Begun = first.Epoch
			if err := m.put(ctx, c, first, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
				return false, err
			}
			own = false // whoever was faster counts
			continue
		}
		if changed, err = m.cfg.PKI.Adopt(rec.Files, true); err != nil {
			return changed, err
		}
		if changed {
			m.cfg.Log.Info("keys of the cluster were taken over from the datastore",
				"stage", rec.Stage, "epoch", rec.Epoch)
		}
		m.since = rec.Epoch
		m.cfg.TakenOver(rec)
		return changed, m.report(ctx, c, rec.Epoch)
	}
}

// Sync takes the stage over that is in force, while this server runs.
func (m *Member) Sync(ctx context.Context, c clientv3.KV) (*Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, _, err := m.sync(ctx, c)
	return rec, err
}

// Current reports whether Claim has found this server's keys to be those in force.
func (m *Member) Current() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since > 0
}

func (m *Member) sync(ctx context.Context, c clientv3.KV) (*Record, int64, error) {
	if m.since == 0 {
		return nil, 0, ErrStarting
	}
	files, err := m.cfg.PKI.Shared()
	if err != nil {
		return nil, 0, err
	}
	rec, revision, err := m.read(ctx, c, files)
	if err != nil {
		return nil, 0, err
	}
	if rec == nil {
		return nil, 0, fmt.Errorf("%s has gone from the datastore: start this server again", Key)
	}
	changed, err := m.cfg.PKI.Adopt(rec.Files, false)
	if err != nil {
		return nil, 0, err
	}
	if changed {
		m.cfg.TakenOver(rec)
		m.cfg.Log.Info("another stage of the keys' rotation is in force", "stage", rec.Stage, "epoch", rec.Epoch)
	}
	return rec, revision, m.report(ctx, c, rec.Epoch)
}

// Rotate announces new authorities and has them sign when all servers trust them: those named or all, made or from a
// folder as pki.PKI.BeginRotation takes them. One that was broken off goes on.
func (m *Member) Rotate(ctx context.Context, c Client, names []string, from string) error {
	rec, err := m.announce(ctx, c, names, from)
	if err != nil {
		return err
	}
	if err := m.wait(ctx, c, rec.Epoch); err != nil {
		return err
	}
	begun := rec.then(Begun, rec.Next, nil)
	begun.Begun = begun.Epoch
	return m.step(ctx, c, rec, begun)
}

// announce puts the first stage into the datastore, or finds it there.
func (m *Member) announce(ctx context.Context, c Client, names []string, from string) (*Record, error) {
	rec, err := m.Sync(ctx, c)
	if err != nil {
		return nil, err
	}
	if rec.Stage == Announced {
		under := added(rec)
		if from != "" || len(names) > 0 && !slices.Equal(slices.Sorted(slices.Values(names)),
			slices.Sorted(slices.Values(under))) {
			return nil, fmt.Errorf("%w: of %s, broken off before the new ones signed; `umiak certificate rotate-ca` without anything else goes on with it", pki.ErrUnderWay, strings.Join(under, ", "))
		}
		return rec, nil
	}
	// Nobody waits for a server that has not even the stage before.
	if _, err := m.lag(ctx, c, false, func(r Report) bool { return r.Epoch >= rec.Epoch }); err != nil {
		return nil, err
	}
	announced, begun, err := m.cfg.PKI.Prepare(names, from)
	if err != nil {
		return nil, err
	}
	next := rec.then(Announced, announced, begun)
	next.Begun = rec.Begun
	return next, m.replace(ctx, c, rec, next)
}

// Finish ends the trust in what was replaced: of those named, or of all under way. check is asked last whether all else
// is ready for that, with the names and the servers' reports.
func (m *Member) Finish(ctx context.Context, c Client, names []string,
	check func(names []string, servers []Report) error) ([]string, error) {
	rec, err := m.Sync(ctx, c)
	if err != nil {
		return nil, err
	}
	if rec.Stage == Announced {
		return nil, fmt.Errorf("%w: the new ones do not sign yet; `umiak certificate rotate-ca` goes on with it",
			pki.ErrUnderWay)
	}
	files, finished, err := m.cfg.PKI.Completed(names)
	if err != nil {
		return nil, err
	}
	if _, err := m.lag(ctx, c, false, func(r Report) bool { return r.Epoch >= rec.Epoch }); err != nil {
		return nil, err
	}
	servers, err := m.lag(ctx, c, true, func(r Report) bool { return r.Since >= rec.Begun })
	if err != nil {
		return nil, err
	}
	if err := check(finished, servers); err != nil {
		return nil, err
	}
	next := rec.then(Settled, files, nil)
	next.Begun = rec.Begun
	if len(files.Under()) > 0 {
		next.Stage = Begun
	}
	return finished, m.step(ctx, c, rec, next)
}

// step replaces the record and waits until all servers have taken that over.
func (m *Member) step(ctx context.Context, c Client, old, next *Record) error {
	if err := m.replace(ctx, c, old, next); err != nil {
		return err
	}
	return m.wait(ctx, c, next.Epoch)
}

// replace puts the next stage into the datastore, if the one before is still there, and takes it over.
func (m *Member) replace(ctx context.Context, c Client, old, next *Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, revision, err := m.sync(ctx, c)
	if err != nil {
		return err
	}
	if now.Epoch != old.Epoch {
		return fmt.Errorf("%w: another server works at it too", pki.ErrUnderWay)
	}
	if err := m.put(ctx, c, next, revision); err != nil {
		return err
	}
	_, _, err = m.sync(ctx, c)
	return err
}

func (m *Member) read(ctx context.Context, c clientv3.KV, files pki.Files) (*Record, int64, error) {
	resp, err := c.Get(ctx, Key)
	if err != nil {
		return nil, 0, fmt.Errorf("read the authorities in the datastore: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	rec, err := decode(resp.Kvs[0].Value, files)
	return rec, resp.Kvs[0].ModRevision, err
}

func (m *Member) put(ctx context.Context, c clientv3.KV, r *Record, revision int64) error {
	raw, err := r.encode()
	if err != nil {
		return err
	}
	return kv.PutIf(ctx, c, Key, string(raw), revision)
}

// Status describes the progress of a rotation.
type Status struct {
	Stage Stage
	// Announced are the names of what all are to trust before it signs.
	Announced []string
	// Behind are the servers that have not taken the stage over, Restart those that have to be started again before
	// Finish.
	Behind, Restart []string
}

// Status returns the progress of the rotation.
func (m *Member) Status(ctx context.Context, c Client) (Status, error) {
	rec, err := m.Sync(ctx, c)
	if err != nil {
		return Status{}, err
	}
	out := Status{Stage: rec.Stage}
	names := func(err error) ([]string, error) {
		var lag *lagError
		if errors.As(err, &lag) {
			return lag.Servers, nil
		}
		return nil, err
	}
	_, err = m.lag(ctx, c, false, func(r Report) bool { return r.Epoch >= rec.Epoch })
	if out.Behind, err = names(err); err != nil {
		return out, err
	}
	switch rec.Stage {
	case Announced:
		out.Announced = added(rec)
	case Begun:
		_, err = m.lag(ctx, c, true, func(r Report) bool { return r.Since >= rec.Begun })
		out.Restart, err = names(err)
	}
	return out, err
}

// added are the names that the stage after an announced one replaces besides.
func added(rec *Record) []string {
	return slices.DeleteFunc(rec.Next.Under(), func(n string) bool { return slices.Contains(rec.Files.Under(), n) })
}
