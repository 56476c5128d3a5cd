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
	"github.com/umiak-io/umiak/internal/socket"
)

// Cluster is implemented by a Store that is a member of an etcd cluster.
type Cluster interface {
	// AddLearner adds a server as a learner and returns all members, for Join in that server's etcd.Config.
	AddLearner(ctx context.Context, name, peer string) ([]etcd.Member, error)
	// RemoveMember removes a server. A server that is not a member is no error.
	RemoveMember(ctx context.Context, name string) error
	// Forget removes a member that is lost or has never started. which is its name or its address.
	Forget(ctx context.Context, which string) (etcd.Member, error)
	// Moved adds an address, HOST:PORT, at which a member that does not answer is tried.
	Moved(name, address string) error
	// Members lists the members as this one knows them.
	Members() []etcd.Member
}

// The backends that store the state on this machine, as Status names them.
const (
	BackendSQLite = "sqlite"
	BackendEtcd   = "etcd"
)

// Present returns the backend whose state is in the folder, and its path; both are empty if there is no state. If the
// state of SQLite and of etcd is there, it is etcd, which has taken over the keys of SQLite.
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

// Joining reports whether the folder holds a member that was added as a learner and was never promoted.
func Joining(dir string) bool { return etcd.Joining(etcdDir(Config{Dir: dir})) }

// GiveUpJoining removes the state of a member for which Joining is true. It is a copy of the other members' state.
func GiveUpJoining(dir string) error {
	if !Joining(dir) {
		return nil
	}
	path := etcdDir(Config{Dir: dir})
	// The mark of Joining is removed last, so that an interrupted removal can be repeated.
	if err := errors.Join(os.RemoveAll(filepath.Join(path, "member")), os.RemoveAll(path)); err != nil {
		return fmt.Errorf("remove the state of a join that was broken off: %w", err)
	}
	return nil
}

// Clustered reports whether Open starts etcd in this process.
func Clustered(cfg Config) bool {
	return cfg.Endpoint == "" && (cfg.ClusterInit || cfg.Etcd.Reset || len(cfg.Etcd.Join) > 0 ||
		etcd.Exists(etcdDir(cfg)))
}

// Shared reports whether several servers may use the datastore, so that their controllers need leader election.
func Shared(cfg Config) bool { return cfg.Endpoint != "" || Clustered(cfg) }

func etcdDir(cfg Config) string { return filepath.Join(cfg.Dir, "etcd") }

// etcdStore is a Store on an embedded etcd member.
type etcdStore struct {
	*etcd.Server
}

var _ Cluster = etcdStore{}

func openEtcd(ctx context.Context, cfg Config) (Store, error) {
	c := cfg.Etcd
	c.Dir, c.Log, c.Registerer, c.Failing = etcdDir(cfg), cfg.Log, cfg.Registerer, cfg.Failing
	// The socket has a folder of its own with mode 0700: etcd creates the socket with a mode that depends on the umask.
	c.Socket = filepath.Join(filepath.Dir(cfg.Socket), "etcd", "client.sock")
	if err := socket.CheckPath(c.Socket); err != nil {
		return nil, err
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
	return etcdStore{s}, nil
}

// Run serves until ctx ends, then closes the member.
func (s etcdStore) Run(ctx context.Context, ready func()) error {
	err := s.Server.Run(ctx, ready)
	return errors.Join(err, s.Close())
}

func (s etcdStore) VolatileEndpoint() string { return "" }
func (s etcdStore) TLS() external.TLS        { return external.TLS{} }

func (s etcdStore) Status(context.Context) (Status, error) {
	st := s.Server.Status()
	out := Status{Backend: BackendEtcd, Etcd: &st}
	if !st.HasLeader {
		return out, errors.New("the cluster has no leader: " + etcd.Remedy(st.Members))
	}
	return out, nil
}

func (s etcdStore) State(context.Context) (snapshot.State, error) {
	rev := s.Revision()
	return snapshot.State{Backend: BackendEtcd, Revision: rev, Epoch: rev>>snapshot.EpochBits + 1}, nil
}

// migrate copies the keys of SQLite into etcd, once, and keeps the old files. It can be interrupted at any point: the
// directory of etcd appears when it is complete, and the files of SQLite are not touched before.
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
		return fmt.Errorf("this machine has a cluster of its own in %s: it cannot join another one; move %s away if "+
			"it is not needed", cfg.Dir, old)
	}
	if !etcd.Exists(c.Dir) {
		begun := time.Now()
		n, err := seed(ctx, cfg, c)
		if err != nil {
			return err
		}
		cfg.Log.Info("moved the datastore from SQLite into etcd", "keys", n, "took",
			time.Since(begun).Round(time.Millisecond))
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
	// The floor is above every revision that the store in memory has returned for Leases and Events, which are in etcd
	// from now on: a client that resumes a watch of either gets "compacted" and lists again.
	floor := max(rev+1, from.Epoch()<<snapshot.EpochBits)
	return n, etcd.Seed(ctx, c, floor, func(put func(*mvccpb.KeyValue) error) error {
		return from.Export(ctx, rev, func(kv *mvccpb.KeyValue) error {
			n++
			return put(kv)
		})
	})
}

// setAside moves the files of SQLite into a folder sqlite-before-etcd-TIME.
func setAside(dir string, log *slog.Logger) error {
	files, err := listing.Match(dir, "state.db*")
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "sqlite-before-etcd-"+time.Now().UTC().Format("20060102T150405Z"))
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("keep the old datastore: %w", err)
	}
	for i := len(files) - 1; i >= 0; i-- { // state.db is the last one: while it is there, the next start continues here
		if err := os.Rename(files[i], filepath.Join(to, filepath.Base(files[i]))); err != nil {
			return fmt.Errorf("keep the old datastore: %w", err)
		}
	}
	log.Info("the files of SQLite are kept; remove them when you no longer want them", "folder", to)
	return errors.Join(atomicfile.SyncDir(to), atomicfile.SyncDir(dir))
}
