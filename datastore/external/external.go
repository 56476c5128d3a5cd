package external

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/mysql"
	"github.com/k3s-io/kine/pkg/drivers/pgsql"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/tls"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/umiak-io/umiak/datastore/internal/grpcserver"
	"github.com/umiak-io/umiak/internal/retry"
)

// TLS names the files of a client: the CA that it trusts, its certificate and key. Empty fields are not used.
type TLS struct{ CAFile, CertFile, KeyFile string }

// Config describes the database.
type Config struct {
	Endpoint        string // URL, perhaps with a password
	TLS             TLS
	Log             *slog.Logger
	Registerer      prometheus.Registerer // nil: no metrics
	EmulatedVersion string                // version of etcd that kine reports
	Progress        time.Duration         // interval of progress notifications to watches; not used for etcd
	// Failing, if not nil, is called with true when the database stops taking writes, and with false when it takes them
	// again. It is not called for etcd.
	Failing func(bool)
}

// Status is the state of the database.
type Status struct {
	Kind     string `json:"kind"`    // as Kind returns it
	Address  string `json:"address"` // without user and password
	Revision int64  `json:"revision"`
}

// kinds maps the schemes of endpoints to kinds of databases.
var kinds = map[string]string{
	"http": "etcd", "https": "etcd", "postgres": "PostgreSQL", "postgresql": "PostgreSQL", "mysql": "MySQL",
	"nats": "NATS",
}

// Kind returns the kind of database of an endpoint (etcd, PostgreSQL, MySQL, NATS), or what is wrong with the endpoint.
func Kind(endpoint string) (string, error) {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	kind := kinds[scheme]
	if !ok || kind == "" {
		return "", errors.New("it does not begin with one of https://, http://, postgres://, mysql://, nats://")
	}
	if kind == "etcd" {
		for e := range strings.SplitSeq(endpoint, ",") {
			u, err := url.Parse(e)
			if err != nil || u.Host == "" || u.Scheme != scheme || u.User != nil {
				return "", errors.New("addresses of etcd are all http://HOST:PORT or all https://HOST:PORT, with " +
					"commas between them")
			}
		}
	} else if rest == "" {
		return "", errors.New("it has no address")
	}
	return kind, nil
}

// userInfo matches the user and password of a URL.
var userInfo = regexp.MustCompile(`//[^/]*@`)

// Address returns the endpoint without user, password and parameters.
func Address(endpoint string) string {
	scheme, rest, _ := strings.Cut(endpoint, "://")
	if kinds[scheme] == "etcd" {
		return endpoint
	}
	rest, _, _ = strings.Cut(rest, "?")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + "://" + rest
}

// scrub replaces every secret of the endpoint in the text of an error.
func (c Config) scrub(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	_, dsn, _ := strings.Cut(c.Endpoint, "://")
	secrets := []string{c.Endpoint, dsn}
	if i := strings.LastIndexByte(dsn, '@'); i >= 0 {
		if _, password, ok := strings.Cut(dsn[:i], ":"); ok {
			secrets = append(secrets, password)
			if p, err := url.PathUnescape(password); err == nil {
				secrets = append(secrets, p)
			}
		}
	}
	if _, query, ok := strings.Cut(dsn, "?"); ok {
		if q, err := url.ParseQuery(query); err == nil {
			secrets = append(secrets, q["password"]...)
		}
	}
	clean := text
	for _, s := range secrets {
		if len(s) > 0 {
			clean = strings.ReplaceAll(clean, s, "xxxxx")
		}
	}
	if clean = userInfo.ReplaceAllString(clean, "//xxxxx@"); clean == text {
		return err
	}
	return errors.New(clean)
}

// Store is an open database.
type Store struct {
	cfg     Config
	kind    string
	backend server.Backend // nil for etcd
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	socket  string
	writes  *writes
	metrics prometheus.Collector // registered while the store is open; nil without Registerer

	mu     sync.Mutex
	client *clientv3.Client
}

// Open connects to the database. It waits for one that does not answer yet or takes no writes at present, until ctx
// ends. socket is the path that Endpoint returns; it is not used for etcd.
func Open(ctx context.Context, cfg Config, socket string) (*Store, error) {
	kind, err := Kind(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("datastore-endpoint: %w", err)
	}
	s := &Store{cfg: cfg, kind: kind, socket: socket, writes: &writes{log: cfg.Log, scrub: cfg.scrub,
		failing: cfg.Failing}}
	newContext := func() { // the driver must work until the last client is gone, which is later than the end of ctx
		s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	}
	if kind == "etcd" {
		newContext()
		return s, nil
	}
	news, pauses := retry.News{}, retry.Backoff{First: firstPause, Limit: longestPause}
	for {
		newContext()
		stop := context.AfterFunc(ctx, s.cancel) // while it connects
		err = s.connect()
		if stop(); err == nil {
			return s, nil
		}
		s.cancel()
		s.wg.Wait()
		away := unwritable(err) || lost(err)
		err = fmt.Errorf("open %s at %s: %w", kind, Address(cfg.Endpoint), cfg.scrub(err))
		if !away || ctx.Err() != nil {
			return nil, err
		}
		if news.Is(err) {
			cfg.Log.Warn("the database cannot be used yet, as while it fails over; trying again", "error", err)
		}
		if pauses.Wait(ctx) != nil {
			return nil, err
		}
	}
}

// Pauses between attempts to open a database.
const (
	firstPause   = time.Second
	longestPause = 5 * time.Second
)

// MaxConnections bounds the connections of a server to a SQL database. Requests beyond it wait for a connection:
// PostgreSQL accepts 100 by default, from all its clients together, and refuses even its administrator beyond them.
const MaxConnections = 30

// maxIdleTime bounds how long a connection without a request stays open.
const maxIdleTime = 2 * time.Minute

// withTimeouts adds parameters to a data source name with which the database closes the connections of a server that
// lost its power or network. Without them PostgreSQL keeps such connections for two hours (the kernel's keepalive) and
// MySQL for eight (wait_timeout), and a server that restarts a few times finds no connection free. Parameters that the
// user has set stay.
func withTimeouts(kind, dsn string) string {
	var parameters []string
	switch kind {
	case "PostgreSQL": // in seconds, https://www.postgresql.org/docs/current/runtime-config-connection.html
		parameters = []string{"tcp_keepalives_idle=60", "tcp_keepalives_interval=15", "tcp_keepalives_count=4"}
	case "MySQL": // in seconds, longer than maxIdleTime
		parameters = []string{"wait_timeout=600"}
	}
	for _, p := range parameters {
		name, _, _ := strings.Cut(p, "=")
		switch {
		case strings.Contains(dsn, "?"+name+"="), strings.Contains(dsn, "&"+name+"="):
		case strings.Contains(dsn, "?"):
			dsn += "&" + p
		default:
			dsn += "?" + p
		}
	}
	return dsn
}

// connect creates kine's driver. The values are the defaults of kine's command; zero would not work.
func (s *Store) connect() error {
	scheme, plain, _ := strings.Cut(s.cfg.Endpoint, "://")
	err := s.connectTo(scheme, withTimeouts(s.kind, plain))
	if err != nil && strings.Contains(err.Error(), "unsupported startup parameter") { // PgBouncer
		err = s.connectTo(scheme, plain)
	}
	return err
}

func (s *Store) connectTo(scheme, dsn string) error {
	sql := func(drive drivers.Constructor) drivers.Constructor {
		return correct(withFailover(drive, s.writes), s.cfg.scrub)
	}
	drive := map[string]drivers.Constructor{"PostgreSQL": sql(pgsql.New), "MySQL": sql(mysql.New),
		"NATS": newNATS}[s.kind]
	// kube-apiserver requests compaction every five minutes. The SQL drivers allow that only if they have no interval
	// of their own; the NATS driver drops history on its own.
	compactInterval := time.Duration(0)
	if s.kind == "NATS" {
		compactInterval = 5 * time.Minute
	}
	metrics := prometheus.NewRegistry() // one per attempt: kine registers its metrics and never unregisters them
	_, b, err := drive(s.ctx, &s.wg, &drivers.Config{
		MetricsRegisterer: metrics, Endpoint: s.cfg.Endpoint, Scheme: scheme, DataSourceName: dsn,
		ConnectionPoolConfig: generic.ConnectionPoolConfig{
			MaxOpen: MaxConnections, MaxIdle: 20, MaxIdleTime: maxIdleTime,
		},
		BackendTLSConfig: tls.Config{CAFile: s.cfg.TLS.CAFile, CertFile: s.cfg.TLS.CertFile,
			KeyFile: s.cfg.TLS.KeyFile},
		CompactInterval: compactInterval, CompactMinRetain: 0, CompactTimeout: 5 * time.Second, CompactBatchSize: 1000,
		PollInterval: time.Second, PollBatchSize: 500,
	})
	if err != nil {
		return err
	}
	if s.kind == "NATS" {
		b = recorded{b, s.writes}
	}
	s.backend = b
	if s.cfg.Registerer == nil {
		return nil
	}
	if err := s.cfg.Registerer.Register(metrics); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	s.metrics = metrics
	return nil
}

// Endpoint returns the URL for kube-apiserver.
func (s *Store) Endpoint() string {
	if s.backend == nil {
		return s.cfg.Endpoint
	}
	return "unix://" + s.socket
}

// TLS returns the files that a client of Endpoint needs; zero for a unix socket.
func (s *Store) TLS() TLS {
	if s.backend == nil {
		return s.cfg.TLS
	}
	return TLS{}
}

// Run serves on l until ctx ends. It calls ready when it serves; for etcd, which it does not serve, when that answers.
func (s *Store) Run(ctx context.Context, l net.Listener, ready func()) (err error) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.client != nil {
			err = errors.Join(err, s.client.Close())
		}
	}()
	defer func() {
		if s.metrics != nil {
			s.cfg.Registerer.Unregister(s.metrics)
		}
	}()
	defer s.wg.Wait()
	defer s.cancel()
	if s.backend == nil {
		return s.await(ctx, ready)
	}
	if err := s.backend.Start(s.ctx); err != nil {
		return fmt.Errorf("start %s: %w", s.kind, s.cfg.scrub(err))
	}
	g := grpcserver.New()
	server.New(s.backend, "unix", s.cfg.Progress, s.cfg.EmulatedVersion).Register(g)
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(l) }()
	ready()
	select {
	case <-ctx.Done():
		g.Stop()
		if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve datastore: %w", err)
		}
		return nil
	case err := <-failed:
		return fmt.Errorf("serve datastore: %w", err)
	}
}

// await calls ready when etcd answers, and returns when ctx ends.
func (s *Store) await(ctx context.Context, ready func()) error {
	for logged := false; ; logged = true {
		_, err := s.Revision(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if !logged {
			s.cfg.Log.Warn("waiting for etcd", "address", s.cfg.Endpoint, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second): // etcd sends no event when it is back
		}
	}
	ready()
	<-ctx.Done()
	return nil
}

// dial returns the client of Endpoint, which it creates at the first call.
func (s *Store) dial() (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	c := clientv3.Config{Endpoints: strings.Split(s.Endpoint(), ","), DialTimeout: 5 * time.Second,
		Logger: zap.NewNop()}
	if t := s.TLS(); t != (TLS{}) {
		info := transport.TLSInfo{CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.CAFile}
		var err error
		if c.TLS, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("read datastore-cafile, datastore-certfile, datastore-keyfile: %w", err)
		}
	}
	var err error
	s.client, err = clientv3.New(c)
	return s.client, err
}

// Kind returns the kind of database.
func (s *Store) Kind() string { return s.kind }

// Revision returns the newest revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	c, err := s.dial()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := c.Get(ctx, healthKey)
	if err != nil {
		return 0, fmt.Errorf("ask %s at %s: %w", s.kind, Address(s.cfg.Endpoint), s.cfg.scrub(err))
	}
	return r.Header.Revision, nil
}

// Status returns the current state. The error is not nil for a database that can be read and takes no writes.
func (s *Store) Status(ctx context.Context) (Status, error) {
	rev, err := s.Revision(ctx)
	if since, failed := s.writes.state(); failed != nil && err == nil {
		err = fmt.Errorf("%s at %s has taken no writes since %s: %w", s.kind, Address(s.cfg.Endpoint),
			since.UTC().Format(time.RFC3339), failed)
	}
	return Status{Kind: s.kind, Address: Address(s.cfg.Endpoint), Revision: rev}, err
}

const exportPage = 1000 // keys that Export reads at once

// healthKey is the key that kine writes when it starts.
const healthKey = "/registry/health"

// Export visits the keys of kube-apiserver as of a revision, in key order, and no other keys of the database. Lease
// in the visited keys is the TTL in seconds, not an ID.
func (s *Store) Export(ctx context.Context, rev int64, visit func(*mvccpb.KeyValue) error) error {
	c, err := s.dial()
	if err != nil {
		return err
	}
	leases := map[int64]int64{}
	const prefix, end = "/registry/", "/registry0"
	for key := prefix; ; {
		r, err := c.Get(ctx, key, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(exportPage),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
		if err != nil {
			return fmt.Errorf("read keys from %q on: %w", key, s.cfg.scrub(err))
		}
		for _, kv := range r.Kvs {
			if s.backend == nil && kv.Lease != 0 { // the leases of kine are seconds already
				seconds, ok := leases[kv.Lease]
				if !ok {
					l, err := c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
					if err != nil {
						return fmt.Errorf("read lease: %w", s.cfg.scrub(err))
					}
					seconds = max(l.GrantedTTL, 0)
					leases[kv.Lease] = seconds
				}
				kv.Lease = seconds
			}
			if s.backend != nil && string(kv.Key) == healthKey {
				continue
			}
			kv.Version = max(kv.Version, 1) // not all drivers of kine store versions
			if err := visit(kv); err != nil {
				return err
			}
		}
		if !r.More {
			return nil
		}
		key = string(slices.Concat(r.Kvs[len(r.Kvs)-1].Key, []byte{0}))
	}
}
