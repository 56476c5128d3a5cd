package external

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/k3s-io/kine/pkg/dialer"
	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/logstructured/sqllog"
	"github.com/k3s-io/kine/pkg/query"
	"github.com/k3s-io/kine/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/umiak-io/umiak/internal/retry"
)

// A database that fails over leaves connections behind that go on answering: the former primary is read-only now, and
// every write that gets one of them from the pool fails for as long as the pool keeps it. kine neither closes them nor
// reports why a write failed: LogStructured takes an error of Append for a key that has changed. surviving mends both,
// between kine's layers (v0.17.5): its dialect gives the pool up when a connection answers so, its log makes the write
// again on a new one and keeps the error for whoever asked, who finds it with the result of withResult.

const (
	// renewPause is the least time between two renewals of the pool, so that a database that stays read-only is not
	// flooded with connections.
	renewPause = 200 * time.Millisecond
	// pollTimeout is how long the query may take by which watches learn of changes.
	pollTimeout = 10 * time.Second
	// silence is after how long without an acknowledgement a connection counts as lost. The kernel's own limit is a
	// quarter of an hour.
	silence = 10 * time.Second
)

// surviving makes a Constructor of one of kine's SQL drivers whose connections survive a failover.
func surviving(drive drivers.Constructor, w *writes) drivers.Constructor {
	return func(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (bool, server.Backend, error) {
		limitSilence()
		elect, b, err := drive(ctx, wg, cfg)
		if err != nil {
			return false, nil, err
		}
		g, err := dialectOf(b)
		if err != nil {
			return false, nil, err
		}
		p := &pool{Dialect: g, db: g.DB, idle: cfg.ConnectionPoolConfig.MaxIdle}
		return elect, logstructured.New(&retrying{Log: sqllog.New(p, wg, cfg), pool: p, writes: w}), nil
	}
}

// dialectOf takes the dialect out of the Backend that a driver of kine's has made, which has not been started. The
// drivers' SQL is not to be had in another way but by copying it.
func dialectOf(b server.Backend) (*generic.Generic, error) {
	var v any = b
	for _, name := range []string{"log", "d"} {
		p := reflect.ValueOf(v)
		if p.Kind() != reflect.Pointer || p.Elem().Kind() != reflect.Struct {
			return nil, fmt.Errorf("find the dialect of kine's driver: %T is no struct", v)
		}
		f := p.Elem().FieldByName(name)
		if !f.IsValid() || f.Kind() != reflect.Interface {
			return nil, fmt.Errorf("find the dialect of kine's driver: %T has no interface %s", v, name)
		}
		v = reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Interface() // it is not exported
	}
	g, ok := v.(*generic.Generic)
	if !ok {
		return nil, fmt.Errorf("find the dialect of kine's driver: it is a %T", v)
	}
	return g, nil
}

// limitSilence has the kernel give up connections of kine's dialer, which is one per process, whose other end is gone
// without a word.
var limitSilence = sync.OnceFunc(func() {
	d := dialer.CachingDialer.Dialer
	d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: silence, Interval: silence / 2, Count: 2}
	d.Control = func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		// Without it a failover takes longer to be noticed; that is no reason to have no database.
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
		})
	}
})

// pool is a Dialect that can give its connections up.
type pool struct {
	server.Dialect
	db   *sql.DB
	idle int

	renewals atomic.Int64
	mu       sync.Mutex
	renewed  time.Time

	// Of the poller, which is one goroutine:
	prepared int64 // renewals when its statement was prepared
	end      context.CancelFunc
}

// renew closes the connections that nobody uses at the moment.
func (p *pool) renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.renewed) < renewPause {
		return
	}
	p.renewed = time.Now()
	p.renewals.Add(1)
	p.db.SetMaxIdleConns(-1)
	p.db.SetMaxIdleConns(p.idle)
}

// PrepareAfter is server.Dialect's. The poller tries again without a pause when it fails in the middle of many changes.
func (p *pool) PrepareAfter(ctx context.Context, limit int64) (*query.Stmt, error) {
	p.prepared = p.renewals.Load()
	s, err := p.Dialect.PrepareAfter(ctx, limit)
	if err != nil {
		_ = retry.Sleep(ctx, time.Second)
	}
	return s, err
}

// QueryAfter is server.Dialect's. The poller keeps one connection to itself, on which it would go on reading from a
// server that nobody writes to any more.
func (p *pool) QueryAfter(ctx context.Context, s *query.Stmt, rev int64) (*sql.Rows, error) {
	if p.prepared != p.renewals.Load() {
		_ = s.Conn.Raw(func(any) error { return driver.ErrBadConn })                                 // has it closed instead of kept
		return nil, fmt.Errorf("the connections to the database were renewed: %w", context.Canceled) // which it does not log
	}
	if p.end != nil {
		p.end()
	}
	ctx, p.end = context.WithTimeout(ctx, pollTimeout) //nolint:gosec // ended by the next call: the rows need it
	return p.Dialect.QueryAfter(ctx, s, rev)
}

// retrying is a Log that makes a write again on another connection where the first one's server takes none.
type retrying struct {
	logstructured.Log
	pool   *pool
	writes *writes
}

// Append is logstructured.Log's.
func (r *retrying) Append(ctx context.Context, e *server.Event) (int64, error) {
	rev, err := r.Log.Append(ctx, e)
	if unwritable(err) {
		r.pool.renew()
		rev, err = r.Log.Append(ctx, e)
	}
	if unwritable(err) || lost(err) {
		r.pool.renew()
	}
	r.writes.record(err)
	if res, ok := ctx.Value(resultKey{}).(*result); ok {
		res.err = err
	}
	return rev, err
}

// unwritable reports whether the server behind a connection has refused a write because it is no primary.
func unwritable(err error) bool {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return pg.Code == "25006" // read_only_sql_transaction
	}
	if my := (*mysql.MySQLError)(nil); errors.As(err, &my) {
		switch my.Number {
		case 1290, // option --read-only, --super-read-only
			1792, // transaction read-only
			1836, // running in read-only mode
			1047: // Galera: not ready for application use
			return true
		}
	}
	return false
}

// lost reports whether the connection was given up by the server, so that others of the pool may be of no use either.
func lost(err error) bool {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") // shut down, starting, connection failure
	}
	var ne net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || errors.As(err, &ne)
}

// result is what became of a write, behind the back of LogStructured.
type result struct{ err error }

type resultKey struct{}

// withResult returns a context in which Append reports its error.
func withResult(ctx context.Context) (context.Context, *result) {
	r := &result{}
	return context.WithValue(ctx, resultKey{}, r), r
}

// failed returns the error for the client of a write that did not get through, nil if it did.
func (r *result) failed(verb, key string, scrub func(error) error) error {
	if r.err == nil || errors.Is(r.err, server.ErrKeyExists) {
		return nil
	}
	return status.Errorf(codes.Unavailable, "%s %s in the database: %v", verb, key, scrub(r.err))
}
