package ttl_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/umiak-io/umiak/datastore/internal/ttl"
)

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		gone := map[string]time.Duration{}
		fail := true
		k := ttl.New(func(_ context.Context, key string, rev int64) error {
			if key == "fails once" && fail {
				fail = false
				return errors.New("no")
			}
			gone[key] = time.Since(begun)
			return nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		k.Set("before run", 1, 10)
		go k.Run(ctx)
		synctest.Wait()
		k.Set("shorter", 2, 3)
		k.Set("renewed", 3, 4)
		k.Set("deleted", 4, 4)
		k.Set("fails once", 5, 20)
		k.Set("for ever", 6, 1<<62)
		time.Sleep(2 * time.Second)
		k.Set("renewed", 7, 60)
		k.Set("deleted", 8, 0)
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		want := map[string]time.Duration{"before run": 10 * time.Second, "shorter": 3 * time.Second,
			"renewed": 62 * time.Second, "fails once": 25 * time.Second}
		if len(gone) != len(want) {
			t.Errorf("gone: %v", gone)
		}
		for key, at := range want {
			if gone[key] != at {
				t.Errorf("%s went after %v, want %v", key, gone[key], at)
			}
		}
		if k.Len() != 1 {
			t.Errorf("%d left", k.Len())
		}
	})
}
