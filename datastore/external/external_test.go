package external_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/storetest"
	"github.com/umiak-io/umiak/server/pki"
)

const password = "s3cr3t-pa:ss"

// escaped is the password in a URL.
const escaped = "s3cr3t-pa%3Ass"

// database is a database server that the test starts.
type database struct {
	t    *testing.T
	dir  string
	port string
	ca   string // file
	cert string
	key  string
	uid  int
}

// newDatabase creates a folder for the user that the server runs as, with a certificate in it. It skips the test if the
// program is not installed.
func newDatabase(t *testing.T, program, userName string) *database {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%s is not installed; scripts/test unit installs it", program)
	}
	u, err := user.Lookup(userName)
	if err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and the user %s", userName)
	}
	dir, err := os.MkdirTemp("", "umiak-db-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(dir, "pki")})
	if err != nil {
		t.Fatal(err)
	}
	d := &database{t: t, dir: dir, ca: p.CACert(pki.ServerCA), cert: filepath.Join(dir, "db.crt"),
		key: filepath.Join(dir, "db.key")}
	if err := p.Add(pki.Leaf{Name: "db", CA: pki.ServerCA, CertFile: d.cert, KeyFile: d.key, CommonName: "db",
		Server: true, IPs: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	d.uid, _ = strconv.Atoi(u.Uid)
	for _, f := range []string{dir, d.cert, d.key, filepath.Join(dir, "pki"), d.ca} {
		if err := os.Chown(f, d.uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	_, d.port, _ = net.SplitHostPort(freeAddress(t))
	return d
}

// freeAddress returns an address on loopback with a free port.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (d *database) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = d.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(d.uid), Gid: uint32(d.uid)},
		Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+d.dir, "TMPDIR="+d.dir)
	return cmd
}

func (d *database) run(name string, args ...string) {
	d.t.Helper()
	if out, err := d.command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// serve starts the server and waits until open answers.
func (d *database) serve(driver, dsn string, name string, args ...string) *sql.DB {
	d.t.Helper()
	var log bytes.Buffer
	cmd := d.command(name, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	d.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // PostgreSQL's fast stop; MariaDB is killed below
		select {
		case <-done:
		case <-time.After(3 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
	})
	db, err := sql.Open(driver, dsn)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = db.Close() })
	for end := time.Now().Add(time.Minute); ; {
		if err = db.Ping(); err == nil {
			return db
		}
		select {
		case err := <-done:
			done <- err
			d.t.Fatalf("%s ended: %v\n%s", name, err, log.String())
		case <-time.After(50 * time.Millisecond): // the server sends no event when it is ready
		}
		if time.Now().After(end) {
			d.t.Fatalf("%s does not answer: %v\n%s", name, err, log.String())
		}
	}
}

// open opens a store and serves it until the test ends.
func open(t *testing.T, endpoint string, tls external.TLS, log *bytes.Buffer) *external.Store {
	t.Helper()
	dir, err := os.MkdirTemp("", "umiak-s-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	s, err := external.Open(t.Context(), external.Config{Endpoint: endpoint, TLS: tls,
		Log: slog.New(slog.NewTextHandler(log, nil)), EmulatedVersion: "3.6.11", Progress: time.Minute}, socket)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, l, func() { close(up) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-up:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// check runs the contract and more on databases whose name replaces NAME in endpoint. notEither adds to without.
func check(t *testing.T, endpoint string, tls external.TLS, count counter, notEither ...string) {
	var log bytes.Buffer
	n := 0
	next := func() string { n++; return strings.ReplaceAll(endpoint, "NAME", fmt.Sprintf("umiak%d", n)) }
	t.Run("Contract", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) *clientv3.Client {
			return dial(t, open(t, next(), tls, &log).Endpoint())
		}, append(notEither, without...)...)
	})
	t.Run("ExportAndStatus", func(t *testing.T) {
		s := open(t, next(), tls, &log)
		c := dial(t, s.Endpoint())
		for i := range 2500 {
			if _, err := storetest.Create(t.Context(), c, fmt.Sprintf("/registry/x/%05d", i), "v"); err != nil {
				t.Fatal(err)
			}
		}
		st, err := s.Status(t.Context())
		if err != nil || strings.Contains(st.Address, "s3cr3t") || !strings.Contains(st.Address, "127.0.0.1") ||
			st.Revision < 2500 {
			t.Errorf("%+v, %v", st, err)
		}
		keys := 0
		if err := s.Export(t.Context(), st.Revision, func(kv *mvccpb.KeyValue) error {
			if string(kv.Key) != fmt.Sprintf("/registry/x/%05d", keys) || kv.ModRevision == 0 || kv.Version == 0 {
				return fmt.Errorf("key %d is %v", keys, kv)
			}
			keys++
			return nil
		}); err != nil || keys != 2500 {
			t.Errorf("%d keys, %v", keys, err)
		}
	})
	t.Run("StartsBesideAWriter", func(t *testing.T) { besideAWriter(t, next(), tls, &log) })
	if count != nil {
		t.Run("Connections", func(t *testing.T) { connections(t, next(), tls, &log, count) })
	}
	t.Run("WrongPassword", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := external.Open(ctx, external.Config{Endpoint: strings.NewReplacer(escaped, "wr0ng", password, "wr0ng",
			"s3cr3t", "wr0ng").Replace(next()), TLS: tls, Log: slog.New(slog.NewTextHandler(&log, nil)),
			EmulatedVersion: "3.6.11"}, "")
		if err == nil || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("got %v", err)
		}
	})
	if strings.Contains(log.String(), "s3cr3t") || strings.Contains(log.String(), "wr0ng") {
		t.Errorf("a password is in the log:\n%s", log.String())
	}
}

// counter counts the connections that a database of that name has. It is nil where there are no SQL connections.
type counter func(name string, n *int) error

// connections writes with many clients at once, and sees that the database has no more connections than it should.
func connections(t *testing.T, endpoint string, tls external.TLS, log *bytes.Buffer, count counter) {
	c := dial(t, open(t, endpoint, tls, log).Endpoint())
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			for n := range 5 {
				if _, err := storetest.Create(t.Context(), c, fmt.Sprintf("/registry/x/%d-%d", i, n), "v"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	name := endpoint[strings.LastIndexByte(endpoint, '/')+1:]
	for most, over := 0, false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		var n int
		if err := count(name, &n); err != nil {
			t.Fatal(err)
		}
		if most = max(most, n); over && (most == 0 || most > external.MaxConnections) {
			t.Errorf("at most %d connections to %s at a time, want 1 to %d", most, name, external.MaxConnections)
		}
	}
}

// besideAWriter starts stores while another server writes to their database, and then only reads from them. Their
// watches must reach what the other server has written, or the caches of an API server that uses them are never
// filled.
func besideAWriter(t *testing.T, endpoint string, tls external.TLS, log *bytes.Buffer) {
	other := dial(t, open(t, endpoint, tls, log).Endpoint())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := storetest.Create(t.Context(), other, fmt.Sprintf("/registry/x/%05d", i), "v"); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var clients []*clientv3.Client
	for range 20 {
		clients = append(clients, dial(t, open(t, endpoint, tls, log).Endpoint()))
	}
	close(stop)
	<-stopped
	last, err := storetest.Create(t.Context(), other, "/registry/last", "v")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ctx = clientv3.WithRequireLeader(ctx)
		at, begun := int64(0), 0
		// kine ends a watch that is too slow, and kube-apiserver then starts another one.
		for ; at < last; begun++ {
			w := c.Watch(ctx, "/registry/y/", clientv3.WithPrefix(), clientv3.WithProgressNotify(),
				clientv3.WithCreatedNotify())
			for open := true; open && at < last; {
				var r clientv3.WatchResponse
				select {
				case r, open = <-w:
					if r.Err() != nil {
						t.Fatalf("store %d: its watches are at %d of %d: %v", i, at, last, r.Err())
					}
					if open && !r.Created {
						at = r.Header.Revision
					}
				case <-time.After(100 * time.Millisecond): // the interval of kube-apiserver
				case <-ctx.Done():
					t.Fatalf("store %d: its watches are at %d of %d, begun %d times", i, at, last, begun+1)
				}
				if err := c.RequestProgress(ctx); open && err != nil {
					t.Fatalf("store %d: its watches are at %d of %d: %v", i, at, last, err)
				}
			}
		}
		if begun > 1 {
			t.Logf("store %d: its watches began %d times", i, begun)
		}
	}
}

// without lists the tests of what kine does not promise and kube-apiserver does not need: watches from the future, keys
// that are not text, lists of all keys without kine's own, and updates of deleted keys.
var without = []string{storetest.WatchFuture, "OddKeysAndValues", "GetAtRevision", "DeleteComparesRevision"}

func execute(t *testing.T, db *sql.DB, q string) {
	t.Helper()
	if _, err := db.Exec(q); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

// textWaiter is a writer that closes a channel when a text is written.
type textWaiter struct {
	text  string
	once  sync.Once
	found chan struct{}
}

func (w *textWaiter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(w.text)) {
		w.once.Do(func() { close(w.found) })
	}
	return len(b), nil
}

// waits opens a database that is read-only, as during a failover, and opens it a second time in the same process.
func waits(t *testing.T, endpoint string, tls external.TLS, readOnly, cure func()) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	log := &textWaiter{text: "cannot be used yet", found: make(chan struct{})}
	reg := prometheus.NewRegistry()
	families := func() int {
		f, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		return len(f)
	}
	socket := filepath.Join(t.TempDir(), "s")
	cfg := external.Config{Endpoint: endpoint, TLS: tls, Log: slog.New(slog.NewTextHandler(log, nil)),
		EmulatedVersion: "3.6.11", Progress: time.Minute, Registerer: reg}
	readOnly()
	var s *external.Store
	opened := make(chan error, 1)
	go func() {
		var err error
		s, err = external.Open(ctx, cfg, socket)
		opened <- err
	}()
	select {
	case <-log.found:
	case err := <-opened:
		t.Fatalf("a read-only database was opened: %v", err)
	case <-ctx.Done():
		t.Fatal("nothing is logged about a read-only database")
	}
	cure()
	for range 2 {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
		if families() == 0 {
			t.Error("an open database has no metrics")
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		run, stop := context.WithCancel(ctx)
		up, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(run, l, func() { close(up) }) }()
		select {
		case <-up:
		case err := <-done:
			t.Fatalf("run: %v", err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := families(); n != 0 {
			t.Errorf("a closed database has %d metrics", n)
		}
		s, err = external.Open(ctx, cfg, socket)
		opened <- err
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
}

// survives makes a database read-only for a while. Connections that are made meanwhile stay read-only afterwards, like
// connections to the former primary after a failover.
func survives(t *testing.T, endpoint string, tls external.TLS, code string, readOnly, cure func()) {
	var log bytes.Buffer
	s := open(t, endpoint, tls, &log)
	c := dial(t, s.Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	watch := c.Watch(ctx, "/registry/x/", clientv3.WithPrefix())
	n := 0
	create := func() error {
		n++
		_, err := storetest.Create(ctx, c, fmt.Sprintf("/registry/x/%d", n), "v")
		return err
	}
	if err := create(); err != nil {
		t.Fatal(err)
	}
	readOnly()
	var err error
	for end := time.Now().Add(20 * time.Second); err == nil || !strings.Contains(err.Error(), code); err = create() {
		if time.Now().After(end) {
			t.Fatalf("a write to a read-only database: %v", err)
		}
	}
	// Many connections at once, all of which stay read-only.
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { _, _ = storetest.Create(ctx, c, fmt.Sprintf("/registry/y/%d", i), "v") })
	}
	wg.Wait()
	if _, err := s.Status(ctx); err == nil || !strings.Contains(err.Error(), code) {
		t.Errorf("while writes fail, the status is %v", err)
	}
	before, err := c.Get(ctx, "/registry/x/1")
	if err != nil || len(before.Kvs) != 1 {
		t.Fatalf("read while writes fail: %v", err)
	}
	// A failed update must not look like a conflict: the API server would try again at once.
	if r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("/registry/x/1"), "=", before.Kvs[0].ModRevision)).
		Then(clientv3.OpPut("/registry/x/1", "2")).Else(clientv3.OpGet("/registry/x/1")).Commit(); err == nil ||
		!strings.Contains(err.Error(), code) {
		t.Errorf("an update of a read-only database: %v, %v", r, err)
	}
	cure()
	failed := 0
	for good := 0; good < 20; {
		if err := create(); err != nil {
			failed, good = failed+1, 0
			if time.Sleep(50 * time.Millisecond); ctx.Err() != nil {
				t.Fatalf("after the database takes writes again: %v", err)
			}
			continue
		}
		good++
	}
	if failed > 20 {
		t.Errorf("%d writes failed after the database took writes again", failed)
	}
	if _, err := s.Status(ctx); err != nil {
		t.Errorf("afterwards, the status is %v", err)
	}
	last := fmt.Sprintf("/registry/x/%d", n)
	for seen := false; !seen; {
		r, ok := <-watch
		if !ok || r.Err() != nil {
			t.Fatalf("the watch ended before %s: %v", last, r.Err())
		}
		for _, e := range r.Events {
			seen = seen || string(e.Kv.Key) == last
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 10 || !strings.Contains(log.String(), "takes no writes") ||
		!strings.Contains(log.String(), "takes writes again") || strings.Contains(log.String(), "s3cr3t") {
		t.Errorf("%d lines in the log:\n%.3000s", n, log.String())
	}
}

func TestPostgreSQL(t *testing.T) {
	t.Parallel() // each database is a process of its own
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		found = []string{"/usr/lib/postgresql"}
	}
	bin := found[len(found)-1]
	d := newDatabase(t, filepath.Join(bin, "postgres"), "postgres")
	pw := filepath.Join(d.dir, "pw")
	if err := errors.Join(os.WriteFile(pw, []byte(password), 0o600), os.Chown(pw, d.uid, -1)); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(d.dir, "data")
	d.run(filepath.Join(bin, "initdb"), "-D", data, "-U", "umiak", "--pwfile", pw, "-A", "scram-sha-256", "-N", "-E",
		"UTF8")
	dsn := "postgres://umiak:" + escaped + "@127.0.0.1:" + d.port + "/postgres?sslmode=verify-full&sslrootcert=" + d.ca
	db := d.serve("pgx", dsn, filepath.Join(bin, "postgres"), "-D", data, "-p", d.port, "-c",
		"listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+d.dir,
		"-c", "ssl=on", "-c", "ssl_cert_file="+d.cert, "-c", "ssl_key_file="+d.key, "-c", "fsync=off", "-c",
		"max_connections=200")
	endpoint := "postgres://umiak:" + escaped + "@127.0.0.1:" + d.port + "/NAME"
	check(t, endpoint, external.TLS{CAFile: d.ca}, func(name string, n *int) error {
		return db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name).Scan(n)
	})
	t.Run("KeepsNoDeadConnections", func(t *testing.T) {
		var log bytes.Buffer
		c := dial(t, open(t, strings.ReplaceAll(endpoint, "NAME", "mortal"), external.TLS{CAFile: d.ca}, &log).Endpoint())
		timer := regexp.MustCompile(`timer:\(keepalive,([0-9]|[1-5][0-9])(\.\d+)?sec`)
		// A connection that has just sent something has another timer for a moment.
		eventually.Nil(t, "the database to check within a minute whether its clients are alive", func() error {
			if _, err := c.Get(t.Context(), "/registry/x"); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("ss", "-tnoH", "state", "established", "sport", "=", ":"+d.port).CombinedOutput()
			if err == nil && !timer.Match(out) {
				err = fmt.Errorf("the connections are\n%s", out)
			}
			return err
		})
	})
	t.Run("Failover", func(t *testing.T) {
		exec := func(q string) { execute(t, db, q) }
		survives(t, strings.ReplaceAll(endpoint, "NAME", "failover"), external.TLS{CAFile: d.ca}, "25006",
			func() {
				exec("ALTER DATABASE failover SET default_transaction_read_only = on")
				exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'failover'")
			},
			func() { exec("ALTER DATABASE failover RESET default_transaction_read_only") })
		exec("CREATE DATABASE waits")
		waits(t, strings.ReplaceAll(endpoint, "NAME", "waits"), external.TLS{CAFile: d.ca},
			func() { exec("ALTER DATABASE waits SET default_transaction_read_only = on") },
			func() { exec("ALTER DATABASE waits RESET default_transaction_read_only") })
	})
}

func TestMariaDB(t *testing.T) {
	t.Parallel() // each database is a process of its own
	const mariadbd = "/usr/sbin/mariadbd"
	d := newDatabase(t, mariadbd, "mysql")
	data, socket := filepath.Join(d.dir, "data"), filepath.Join(d.dir, "my.sock")
	d.run("mariadb-install-db", "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal",
		"--skip-test-db")
	db := d.serve("mysql", "root@unix("+socket+")/", mariadbd, "--no-defaults", "--datadir="+data, "--socket="+socket,
		"--port="+d.port, "--bind-address=127.0.0.1",
		"--pid-file="+filepath.Join(d.dir, "pid"), "--ssl-cert="+d.cert, "--ssl-key="+d.key, "--ssl-ca="+d.ca,
		"--innodb-flush-log-at-trx-commit=0", "--max-connections=500")
	for _, q := range []string{"CREATE USER umiak@'%' IDENTIFIED BY '" + password + "' REQUIRE SSL",
		"GRANT ALL ON *.* TO umiak@'%'"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := "mysql://umiak:" + password + "@tcp(127.0.0.1:" + d.port + ")/NAME"
	check(t, endpoint, external.TLS{CAFile: d.ca}, func(name string, n *int) error {
		return db.QueryRow("SELECT count(*) FROM information_schema.processlist WHERE db = ?", name).Scan(n)
	})
	t.Run("Failover", func(t *testing.T) {
		exec := func(q string) { execute(t, db, q) }
		survives(t, strings.ReplaceAll(endpoint, "NAME", "failover"), external.TLS{CAFile: d.ca}, "1792",
			func() { exec("SET GLOBAL tx_read_only = ON"); exec("KILL USER umiak") },
			func() { exec("SET GLOBAL tx_read_only = OFF") })
		waits(t, strings.ReplaceAll(endpoint, "NAME", "waits"), external.TLS{CAFile: d.ca},
			func() { exec("SET GLOBAL tx_read_only = ON") }, func() { exec("SET GLOBAL tx_read_only = OFF") })
	})
}

func TestAddressesHaveNoSecrets(t *testing.T) {
	for endpoint, want := range map[string]string{
		"postgres://u:p@ss@db:5432/k?sslmode=require&password=x": "postgres://db:5432/k",
		"mysql://u:p@tcp(db:3306)/k?tls=true":                    "mysql://tcp(db:3306)/k",
		"nats://token@nats:4222?bucket=b":                        "nats://nats:4222",
		"https://a:2379,https://b:2379":                          "https://a:2379,https://b:2379",
	} {
		if got := external.Address(endpoint); got != want {
			t.Errorf("%s: %s", endpoint, got)
		}
	}
	for _, bad := range []string{"", "sqlite:///x", "postgres:", "postgres://", "https://a:2379,http://b:2379",
		"https://u:p@a:2379", "https://"} {
		if k, err := external.Kind(bad); err == nil {
			t.Errorf("%q is taken for %s", bad, k)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("postgres://u:p@ss@db:5432/k?sslmode=require")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = external.Kind(s)
		_ = external.Address(s)
	})
}

func TestNATS(t *testing.T) {
	t.Parallel() // each database is a process of its own
	const program = "/usr/sbin/nats-server"
	d := newDatabase(t, program, "nobody")
	if err := os.Mkdir(filepath.Join(d.dir, "data"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(d.dir, "data"), d.uid, -1); err != nil {
		t.Fatal(err)
	}
	cmd := d.command(program, "-a", "127.0.0.1", "-p", d.port, "-js", "-sd", filepath.Join(d.dir, "data"), "--user",
		"umiak", "--pass", "s3cr3t")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually.Nil(t, "the server to listen", func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+d.port)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	// The driver stores only the last revisions of each key, counts all keys of a list for each page, and has neither
	// versions nor reads of keys without values.
	check(t, "nats://umiak:s3cr3t@127.0.0.1:"+d.port+"?bucket=NAME", external.TLS{}, nil,
		"APIServerCompactionKey", "ListPages", "WatchFromOldRevision", "CompactKeepsCurrent", "CompactErrors",
		"CompactedReads")
}
