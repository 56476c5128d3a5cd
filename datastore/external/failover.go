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

// How connections survive a failover of the database.
//
// After a failover, connections to the former primary still answer, but it is read-only: every write that gets one of
// them from the pool fails for as long as the pool has it. kine (v0.17.5) neither closes them nor reports why a write
// failed: its LogStructured takes an error of Append for a key that has changed. withFailover puts two layers into
// kine: a dialect that drops the idle connections of the pool, and a log that repeats the write on a new connection
// and passes its error to the caller, in the result of withResult.

const (
	// renewPause is the minimum time between two renewals of the pool, so that a database that stays read-only is not
	// flooded with connections.
	renewPause = 200 * time.Millisecond
	// pollTimeout bounds the query that finds changes for watches.
	pollTimeout = 10 * time.Second
	// silenceTimeout is the time without an acknowledgement after which a connection counts as lost. The kernel's
	// default is about a quarter of an hour (tcp_retries2 in tcp(7)).
	silenceTimeout = 10 * time.Second
)

// withFailover wraps the Constructor of one of kine's SQL drivers so that its connections survive a failover.
func withFailover(drive drivers.Constructor, w *writes) drivers.Constructor {
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
		return elect, logstructured.New(&retrying{
			Log: sqllog.New(p, wg, cfg), pool: p, writes: w, turns: make(chan struct{}, MaxConnections/3),
		}), nil
	}
}

// dialectOf returns the dialect inside a Backend of kine that has not been started. The fields are not exported; the
// only other way to the SQL of the drivers would be to copy it.
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

// limitSilence sets keepalive and TCP_USER_TIMEOUT on kine's dialer, which is one per process, so that the kernel
// closes connections whose peer has disappeared.
var limitSilence = sync.OnceFunc(func() {
	d := dialer.CachingDialer.Dialer
	d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: silenceTimeout, Interval: silenceTimeout / 2, Count: 2}
	d.Control = func(network, _ string, c syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		// An error is ignored: without the option, a failover is only noticed later.
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
				int(silenceTimeout/time.Millisecond))
		})
	}
})

// pool is a Dialect that can close its idle connections.
type pool struct {
	server.Dialect
	db   *sql.DB
	idle int

	renewals atomic.Int64
	mu       sync.Mutex
	renewed  time.Time

	// Used only by the poller, which is one goroutine:
	prepared int64              // renewals when its statement was prepared
	end      context.CancelFunc // ends its last query
}

// renew closes the idle connections, unless it did so within renewPause.
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

// PrepareAfter implements server.Dialect. It pauses after an error, since kine's poller may call it again at once.
func (p *pool) PrepareAfter(ctx context.Context, limit int64) (*query.Stmt, error) {
	p.prepared = p.renewals.Load()
	s, err := p.Dialect.PrepareAfter(ctx, limit)
	if err != nil {
		_ = retry.Sleep(ctx, time.Second)
	}
	return s, err
}

// QueryAfter implements server.Dialect. The poller has a connection of its own, on which it would go on reading from
// the former primary, so it is closed after a renewal.
func (p *pool) QueryAfter(ctx context.Context, s *query.Stmt, rev int64) (*sql.Rows, error) {
	if p.prepared != p.renewals.Load() {
		// has it closed instead of kept
		_ = s.Conn.Raw(func(any) error { return driver.ErrBadConn })
		// which it does not log
		return nil, fmt.Errorf("the connections to the database were renewed: %w", context.Canceled)
	}
	if p.end != nil {
		p.end()
	}
	ctx, p.end = context.WithTimeout(ctx, pollTimeout) //nolint:gosec // ended by the next call: the rows need it
	return p.Dialect.QueryAfter(ctx, s, rev)
}

// retrying is a Log that repeats a write on another connection if the server of the first one is read-only.
type retrying struct {
	logstructured.Log
	pool   *pool
	writes *writes
	// turns bounds the concurrent writes. kine's Append (v0.17.5) takes a second connection from the pool while its
	// transaction holds the first: as many writes as the pool has connections would wait for each other forever.
	turns chan struct{}
}

// Append implements logstructured.Log.
func (r *retrying) Append(ctx context.Context, e *server.Event) (rev int64, err error) {
	if res, ok := ctx.Value(resultKey{}).(*result); ok {
		defer func() { res.err = err }()
	}
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for a connection: %w", context.Cause(ctx))
	}
	rev, err = r.Log.Append(ctx, e)
	if unwritable(err) {
		r.pool.renew()
		rev, err = r.Log.Append(ctx, e)
	}
	if unwritable(err) || lost(err) {
		r.pool.renew()
	}
	r.writes.record(err)
	return rev, err
}

// unwritable reports whether a server has refused a write because it is not the primary.
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

// lost reports whether the connection is broken, so that others of the pool may be broken too.
func lost(err error) bool {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		// shut down, starting, connection failure
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08")
	}
	var ne net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) || errors.As(err, &ne)
}

// result carries the error of Append past LogStructured, which drops it.
type result struct{ err error }

type resultKey struct{}

// withResult returns a context, and the result into which Append writes its error.
func withResult(ctx context.Context) (context.Context, *result) {
	r := &result{}
	return context.WithValue(ctx, resultKey{}, r), r
}

// failed returns the error for the client if the write failed, nil if it succeeded or the key exists.
func (r *result) failed(verb, key string, scrub func(error) error) error {
	if r.err == nil || errors.Is(r.err, server.ErrKeyExists) {
		return nil
	}
	return status.Errorf(codes.Unavailable, "%s %s in the database: %v", verb, key, scrub(r.err))
}
