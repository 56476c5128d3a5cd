package datastore_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/datastore/volatile"
)

// FuzzSame sends the same requests, derived from the input, to both stores and compares the answers. The stores share
// no code but the hub, so they hardly have the same fault.
func FuzzSame(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x10\x11\x12\x20\x21\x30\x41\x52\x63\x74\x85\x96"))
	seed := make([]byte, 600)
	for i := range seed {
		seed[i] = byte(i * 37 >> 2)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, in []byte) {
		dir, err := os.MkdirTemp(fast(), "umiak-fuzz-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		log := slog.New(slog.DiscardHandler)
		disk, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		mem := volatile.New(1, log)
		ctx := t.Context()
		if len(in) > 400 {
			in = in[:400]
		}
		for step := 0; step+2 < len(in); step += 3 {
			what, k, n := in[step]%10, in[step+1]%6, int64(in[step+2])
			key := fmt.Sprintf("/k/%d", k)
			var got [2]string
			for i, b := range []server.Backend{disk, mem} {
				got[i] = request(ctx, b, what, key, n)
			}
			if got[0] != got[1] {
				t.Fatalf("step %d, request %d %s %d:\nsqlite:   %s\nvolatile: %s", step/3, what, key, n, got[0], got[1])
			}
		}
	})
}

func request(ctx context.Context, b server.Backend, what byte, key string, n int64) string {
	show := func(kvs ...*server.KeyValue) (s string) {
		for _, kv := range kvs {
			if kv == nil {
				s += " none"
			} else {
				s += fmt.Sprintf(" %s=%s@%d/%d v%d l%d", kv.Key, kv.Value, kv.ModRevision, kv.CreateRevision,
					kv.Version, kv.Lease)
			}
		}
		return s
	}
	current, _ := b.CurrentRevision(ctx)
	at := max(current-n%20, 0)
	_, now, _ := b.Get(ctx, key, 0, true)
	mod := n % 3
	if now != nil && n%2 == 0 {
		mod = now.ModRevision
	}
	switch what {
	case 0, 1:
		rev, err := b.Create(ctx, key, fmt.Append(nil, n), n)
		return fmt.Sprint("create ", rev, err)
	case 2, 3:
		rev, kv, ok, err := b.Update(ctx, key, fmt.Append(nil, n), mod, 0)
		return fmt.Sprint("update ", rev, show(kv), ok, err)
	case 4:
		rev, kv, ok, err := b.Delete(ctx, key, mod)
		return fmt.Sprint("delete ", rev, show(kv), ok, err)
	case 5:
		rev, kv, err := b.Get(ctx, key, at, n%2 == 0)
		return fmt.Sprint("get ", rev, show(kv), err)
	case 6:
		rev, kvs, err := b.List(ctx, key, "/k0", n%4, at, n%2 == 0)
		return fmt.Sprint("list ", rev, show(kvs...), err)
	case 7:
		rev, count, err := b.Count(ctx, key, []string{"", "/k0", "\x00"}[n%3], at)
		return fmt.Sprint("count ", rev, count, err)
	case 8:
		rev, err := b.Compact(ctx, max(at, 2)) // the stores begin at 1, one of them compacted
		return fmt.Sprint("compact ", rev, err)
	default:
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		wr := b.Watch(ctx, at)
		if wr.CompactRevision != 0 {
			return fmt.Sprint("watch compacted ", wr.CompactRevision)
		}
		out := fmt.Sprint("watch ", wr.CurrentRevision)
		for batch := range wr.Eventc {
			for _, e := range batch.Events {
				out += fmt.Sprint(e.Create, e.Delete, show(e.KV, e.PrevKV))
			}
			if batch.CurrentRev >= wr.CurrentRevision {
				break
			}
		}
		return out
	}
}

// fast returns a folder in memory if there is one, since the test is not about durability.
func fast() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return ""
}
