package external

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/logstructured"
	"github.com/k3s-io/kine/pkg/server"
)

// log is a Log of kine with one key, beside another writer whose revisions are ahead.
type log struct {
	logstructured.Log
	newest *server.Event
	rev    int64
	broken bool
}

func (l *log) Append(_ context.Context, e *server.Event) (int64, error) {
	if l.broken {
		return 0, errors.New("connection lost")
	}
	if l.newest != nil && l.newest.KV.ModRevision != e.PrevKV.ModRevision {
		return 0, nil
	}
	l.rev++
	kv := *e.KV
	kv.ModRevision, kv.CreateRevision = l.rev, l.rev
	l.newest = &server.Event{KV: &kv, Create: e.Create, Delete: e.Delete}
	return l.rev, nil
}

func (l *log) List(_ context.Context, _, _ string, _, _ int64, deleted, _ bool) (server.EventBatch, error) {
	b := server.EventBatch{CurrentRev: l.rev}
	if l.newest != nil && (deleted || !l.newest.Delete) {
		b.Events = append(b.Events, l.newest)
	}
	return b, nil
}

// CurrentRevision returns the revision of the other writer.
func (l *log) CurrentRevision(context.Context) (int64, error) { return l.rev + 5, nil }

// TestCorrectedCreate checks corrected.Create. It fails when kine's own Create is right, too: then corrected can go.
func TestCorrectedCreate(t *testing.T) {
	for name, fixed := range map[string]bool{"kine's own": false, "ours": true} {
		t.Run(name, func(t *testing.T) {
			l := &log{}
			drive := drivers.Constructor(func(context.Context, *sync.WaitGroup, *drivers.Config) (bool, server.Backend,
				error) {
				return true, logstructured.New(l), nil
			})
			if fixed {
				drive = correct(drive, func(err error) error { return err })
			}
			_, b, err := drive(t.Context(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			first, err := b.Create(t.Context(), "/a", []byte("1"), 0)
			if err != nil || first != 1 {
				t.Fatalf("created at %d: %v", first, err)
			}
			if _, err := b.Create(t.Context(), "/a", []byte("1"), 0); !errors.Is(err, server.ErrKeyExists) {
				t.Fatalf("created twice: %v", err)
			}
			if _, _, ok, err := b.Delete(t.Context(), "/a", first); !ok || err != nil {
				t.Fatalf("deleted %v: %v", ok, err)
			}
			again, err := b.Create(t.Context(), "/a", []byte("2"), 0)
			if err != nil || (again == l.newest.KV.ModRevision) != fixed {
				t.Errorf("created again at %d, stored at %d: %v", again, l.newest.KV.ModRevision, err)
			}
			*l = log{broken: true}
			if rev, err := b.Create(t.Context(), "/a", []byte("1"), 0); (err != nil) != fixed {
				t.Errorf("created at %d in a database that is away: %v", rev, err)
			}
		})
	}
}

func TestTimeoutsOfTheUserStay(t *testing.T) {
	for _, c := range []struct{ kind, dsn, want string }{
		{"MySQL", "u@tcp(db)/x", "u@tcp(db)/x?wait_timeout=600"},
		{"MySQL", "u@tcp(db)/x?tls=true&wait_timeout=9", "u@tcp(db)/x?tls=true&wait_timeout=9"},
		{"MySQL", "u@tcp(db)/x?innodb_lock_wait_timeout=9", "u@tcp(db)/x?innodb_lock_wait_timeout=9&wait_timeout=600"},
		{"PostgreSQL", "u@db/x?tcp_keepalives_idle=9",
			"u@db/x?tcp_keepalives_idle=9&tcp_keepalives_interval=15&tcp_keepalives_count=4"},
		{"NATS", "db", "db"},
	} {
		if got := withTimeouts(c.kind, c.dsn); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.kind, c.dsn, got, c.want)
		}
	}
}
