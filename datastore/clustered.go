package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/listing"
)

// Cluster is what a Store offers besides where it is a member of an etcd cluster.
type Cluster interface {
	// AddLearner takes a server in and returns all members, for the Join of its configuration.
	AddLearner(ctx context.Context, name, peer string) ([]etcd.Member, error)
	// Promote makes a learner that has caught up a voting member; members that start do so by themselves.
	Promote(ctx context.Context, name string) error
	RemoveMember(ctx context.Context, name string) error
	// Forget takes a member out that is lost or has never started, by its name or address.
	Forget(ctx context.Context, which string) (etcd.Member, error)
	// Moved says at which other address, HOST:PORT, a member is that does not answer.
	Moved(name, address string) error
	Members() []etcd.Member
}

// The backends that keep the state on this machine.
const (
	BackendSQLite = "sqlite"
	BackendEtcd   = "etcd"
)

// Present says what has state in the folder, and where; nothing if none has. etcd has taken over what SQLite had
// where both are there.
func Present(dir string) (backend, path string) {
	if path = etcdDir(Config{Dir: dir}); etcd.Exists(path) {
		return BackendEtcd, path
	}
	if path = sqlite.File(dir); exists(path) {
		return BackendSQLite, path
	}
	return "", ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// Joining reports whether the folder holds a member that was taken in and has never become a full one.
func Joining(dir string) bool { return etcd.Joining(etcdDir(Config{Dir: dir})) }

// GiveUpJoining removes the state of such a member, which is a copy of what the others have.
func GiveUpJoining(dir string) error {
	if !Joining(dir) {
		return nil
	}
	path := etcdDir(Config{Dir: dir})
	// The mark goes last: until then this can be done again.
	if err := errors.Join(os.RemoveAll(filepath.Join(path, "member")), os.RemoveAll(path)); err != nil {
		return fmt.Errorf("remove the state of a join that was broken off: %w", err)
	}
	return nil
}

// Clustered says whether the datastore is, or becomes, etcd in this process.
func Clustered(cfg Config) bool {
	return cfg.Endpoint == "" && (cfg.ClusterInit || cfg.Etcd.Reset || len(cfg.Etcd.Join) > 0 || etcd.Exists(etcdDir(cfg)))
}

// Shared says whether several servers may use the datastore, so that they need leaders.
func Shared(cfg Config) bool { return cfg.Endpoint != "" || Clustered(cfg) }

func etcdDir(cfg Config) string { return filepath.Join(cfg.Dir, "etcd") }

// clustered is a Store on etcd.
type clustered struct {
	*etcd.Server
}

var _ Cluster = clustered{}

func openEtcd(ctx context.Context, cfg Config) (Store, error) {
	c := cfg.Etcd
	c.Dir, c.Log, c.Registerer, c.Failing = etcdDir(cfg), cfg.Log, cfg.Registerer, cfg.Failing
	// A folder of its own, since etcd makes the socket with the mode that the process' umask leaves.
	c.Socket = filepath.Join(filepath.Dir(cfg.Socket), "etcd", "client.sock")
	if len(c.Socket) > 107 {
		return nil, fmt.Errorf("listen on %s: the path of a unix socket may have 107 bytes: choose a shorter --run-dir", c.Socket)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open datastore: %w", err)
	}
	if err := migrate(ctx, cfg, c); err != nil {
		return nil, err
	}
	s, err := etcd.Open(c)
	if err != nil {
		return nil, err
	}
	return clustered{s}, nil
}

// Run serves until ctx ends, then closes.
func (s clustered) Run(ctx context.Context, ready func()) error {
	err := s.Server.Run(ctx, ready)
	return errors.Join(err, s.Close())
}

func (s clustered) VolatileEndpoint() string { return "" }
func (s clustered) TLS() external.TLS        { return external.TLS{} }

func (s clustered) Status(context.Context) (Status, error) {
	st := s.Server.Status()
	out := Status{Backend: BackendEtcd, Etcd: &st}
	if !st.HasLeader {
		return out, errors.New("the cluster has no leader: " + etcd.Remedy(st.Members))
	}
	return out, nil
}

func (s clustered) State(context.Context) (snapshot.State, error) {
	rev := s.Revision()
	return snapshot.State{Backend: BackendEtcd, Revision: rev, Epoch: rev>>epochBits + 1}, nil
}

// migrate moves what SQLite has into etcd, once, and keeps the old files. It may be broken off anywhere:
// etcd's directory appears when it is complete, and until then SQLite's is not touched.
func migrate(ctx context.Context, cfg Config, c etcd.Config) error {
	old := sqlite.File(cfg.Dir)
	_, err := os.Stat(old)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("move into etcd: %w", err)
	}
	if len(c.Join) > 0 && !etcd.Exists(c.Dir) {
		return fmt.Errorf("this machine has a cluster of its own in %s: it cannot join another one; move %s away if it is not needed", cfg.Dir, old)
	}
	if !etcd.Exists(c.Dir) {
		begun := time.Now()
		n, err := seed(ctx, cfg, c)
		if err != nil {
			return err
		}
		cfg.Log.Info("moved the datastore from SQLite into etcd", "keys", n, "took", time.Since(begun).Round(time.Millisecond))
	}
	return setAside(cfg.Dir, cfg.Log)
}

func seed(ctx context.Context, cfg Config, c etcd.Config) (n int, err error) {
	from, err := sqlite.Open(ctx, sqlite.Options{Dir: cfg.Dir, Log: cfg.Log})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	rev, _ := from.Revisions()
	// Above everything that the store in memory has given out for Leases and Events, which are in etcd from
	// now on: a client that goes on watching either is told to list anew.
	floor := max(rev+1, from.Epoch()<<epochBits)
	return n, etcd.Seed(ctx, c, floor, func(put func(*mvccpb.KeyValue) error) error {
		return from.Export(ctx, rev, func(kv *mvccpb.KeyValue) error {
			n++
			return put(kv)
		})
	})
}

// setAside puts SQLite's files into a folder whose name says what they are.
func setAside(dir string, log *slog.Logger) error {
	files, err := listing.Match(dir, "state.db*")
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "sqlite-before-etcd-"+time.Now().UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("keep the old datastore: %w", err)
	}
	for i := len(files) - 1; i >= 0; i-- { // state.db itself last: while it is there, this goes on
		if err := os.Rename(files[i], filepath.Join(to, filepath.Base(files[i]))); err != nil {
			return fmt.Errorf("keep the old datastore: %w", err)
		}
	}
	log.Info("the files of SQLite are kept; remove them when you no longer want them", "folder", to)
	return errors.Join(atomicfile.SyncDir(to), atomicfile.SyncDir(dir))
}
