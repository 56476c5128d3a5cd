package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// fill leaves no byte on the disk of the server's files, and free makes room again.
const (
	fill = "cat /dev/zero >/run/small/filler 2>/dev/null || :"
	free = "rm /run/small/filler"
)

// TestFullDatastore: the disk of a server's keys and datastore is full before the first start, fills up while the
// server runs, and is full at a start with data. Each time status names it, and everything is ready when there is
// room, in the same process and with every write that was acknowledged.
func TestFullDatastore(t *testing.T) {
	t.Parallel()
	hostile <- struct{}{}
	t.Cleanup(func() { <-hostile })
	e := off(t, cluster.Options{Name: "filled", Images: []string{}})
	e.sh(`d=/var/lib/umiak/server; mkdir -p -m 700 /run/small $d/pki $d/db; mount -t tmpfs -o size=64m,mode=700 tmpfs /run/small
mkdir -m 700 /run/small/pki /run/small/db; mount --bind /run/small/pki $d/pki; mount --bind /run/small/db $d/db; ` + fill)
	starts := func(e *env) {
		e.Helper()
		e.must(e.Start())
		pid := e.PID()
		e.statusSays("disk", "is full")
		e.sh(free)
		e.must(e.APIReady(e.soon()))
		e.allReady()
		if e.PID() != pid {
			e.Errorf("process %d became %d", pid, e.PID())
		}
	}
	out, err := e.Umiak(e.soon(), "check")
	if l := lineWith(out, []string{"disk space", "full"}); !strings.HasPrefix(l, "MISSING") {
		t.Errorf("check does not name the full disk: %v\n%s", err, out)
	}
	e.sub("at the first start", starts)
	if t.Failed() {
		return
	}
	e.namespace()
	w := &writer{kube: e.Kube, ns: e.ns, pace: pace}
	ctx, cancel := context.WithCancel(e.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.run(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	e.sub("while it runs", func(e *env) {
		pid := e.PID()
		e.sh(fill)
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := e.Umiak(ctx, "status")
			if lineWith(out, []string{"sqlite", "unhealthy", "full"}) == "" {
				return fmt.Errorf("status does not say that writes fail: %w\n%s", err, out)
			}
			if lineWith(out, []string{"datastore", "unhealthy", "writes fail"}) == "" || err == nil {
				return fmt.Errorf("status ends with 0 (%t), or has the component for healthy:\n%s", err == nil, out)
			}
			return nil
		}))
		_, err := e.Kube.CoreV1().ConfigMaps(e.ns).List(e.soon(), metav1.ListOptions{})
		e.must(err)
		e.sh(free)
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := e.Umiak(ctx, "status")
			if err != nil {
				return fmt.Errorf("with room again: %w\n%s", err, out)
			}
			return nil
		}))
		e.writesAgain()
		e.allReady()
		if l := e.statusLine("sqlite"); !strings.Contains(l, " healthy") {
			e.Errorf("when writes succeed again status says %q", l)
		}
		if e.PID() != pid {
			e.Errorf("process %d became %d", pid, e.PID())
		}
	})
	e.sub("at a start with data", func(e *env) {
		e.must(e.Stop(e.soon()))
		e.sh(fill)
		starts(e)
		e.writesAgain()
	})
	stop()
	e.nothingLost(writers{w})
}

// writesAgain waits until a write is acknowledged.
func (e *env) writesAgain() {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "again-"}}
		_, err := e.Kube.CoreV1().ConfigMaps(e.ns).Create(ctx, m, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, e.LogTail(5))
		}
		return nil
	}))
}
