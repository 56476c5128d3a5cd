package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/internal/testing/powercut"
)

// disk is a device below a folder of a machine that forgets what was not synced.
type disk struct {
	*powercut.Disk
	dir     string
	mounted *powercut.Mount
}

// mount makes the folder show what is on the disk. Only the machine sees it, so that whatever ends the
// machine takes it away as well.
func (d *disk) mount(e *env) {
	e.Helper()
	e.must(e.M.Do(func() (err error) {
		if d.mounted != nil {
			if err := d.mounted.Unmount(); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			return err
		}
		d.mounted, err = d.Disk.Mount(d.dir)
		return err
	}))
}

// record is a ConfigMap that one client takes through steps, one after the other.
type record struct {
	name  string
	step  int    // the newest that was acknowledged
	rv    uint64 // after it; after a removal, that of before
	tried int    // the one after, if it was asked for and not acknowledged
	seen  atomic.Int64
}

// absent says whether a record is not there after a step.
func absent(step int) bool { return step%6 == 0 }

// text is long enough to cover pages of the file, and differs in all of it from step to step.
func (r *record) text(step int) string {
	return strings.Repeat(fmt.Sprintf("%s is at %d. ", r.name, step), 20+step%7*40)
}

func version(resourceVersion string) uint64 {
	n, _ := strconv.ParseUint(resourceVersion, 10, 64) // 0 is lower than all
	return n
}

func stepOf(cm *corev1.ConfigMap) int {
	n, _ := strconv.Atoi(cm.Data["step"]) // 0 is not a step that is there
	return n
}

// next takes a record one step further and notes whether that was acknowledged.
func (r *record) next(ctx context.Context, e *env) error {
	cms := e.Kube.CoreV1().ConfigMaps(e.ns)
	r.tried = r.step + 1
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: r.name},
		Data: map[string]string{"step": strconv.Itoa(r.tried), "text": r.text(r.tried)}}
	var err error
	switch {
	case absent(r.tried):
		err = cms.Delete(ctx, r.name, metav1.DeleteOptions{})
	case absent(r.step):
		cm, err = cms.Create(ctx, cm, metav1.CreateOptions{})
	default:
		cm.ResourceVersion = strconv.FormatUint(r.rv, 10)
		cm, err = cms.Update(ctx, cm, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	if !absent(r.tried) {
		r.rv = version(cm.ResourceVersion)
	}
	r.step, r.tried = r.tried, 0
	return nil
}

// check compares a record with what is there (nil: nothing), and takes over what that is.
func (r *record) check(cm *corev1.ConfigMap) error {
	is := func(step int) bool {
		if absent(step) {
			return cm == nil
		}
		return cm != nil && stepOf(cm) == step && cm.Data["text"] == r.text(step)
	}
	have := "nothing"
	if cm != nil {
		have = fmt.Sprintf("step %s at %s with %d bytes", cm.Data["step"], cm.ResourceVersion, len(cm.Data["text"]))
	}
	switch seen := int(r.seen.Load()); {
	case is(r.step) && (cm == nil || version(cm.ResourceVersion) == r.rv):
		if seen > r.step {
			return fmt.Errorf("%s: a watch saw step %d, there is %s", r.name, seen, have)
		}
	case r.tried > 0 && is(r.tried) && (cm == nil || version(cm.ResourceVersion) > r.rv):
		r.step = r.tried
		if cm != nil {
			r.rv = version(cm.ResourceVersion)
		}
	default:
		return fmt.Errorf("%s: step %d at %d was acknowledged, step %d was asked for, there is %s", r.name, r.step,
			r.rv, r.tried, have)
	}
	r.tried = 0
	return nil
}

// load runs clients that write until the power is cut, which cut does, and a watch beside them.
func load(e *env, records []*record, clients int, cut func()) (acknowledged int64) {
	e.Helper()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	w, err := e.Kube.CoreV1().ConfigMaps(e.ns).Watch(ctx, metav1.ListOptions{})
	e.must(err)
	byName := map[string]*record{}
	for _, r := range records {
		byName[r.name] = r
	}
	wg.Go(func() {
		defer w.Stop()
		for ev := range w.ResultChan() {
			cm, ok := ev.Object.(*corev1.ConfigMap)
			if !ok || byName[cm.Name] == nil {
				continue
			}
			step := stepOf(cm)
			if ev.Type == watch.Deleted {
				step++
			}
			byName[cm.Name].seen.Store(int64(step))
		}
	})

	var count atomic.Int64
	var off atomic.Bool
	for c := range clients {
		wg.Go(func() {
			for i := c; ctx.Err() == nil; i = (i + clients) % len(records) {
				if err := records[i].next(ctx, e); err != nil {
					if !off.Load() {
						e.Errorf("before the power was cut: %v", err)
					}
					return
				}
				count.Add(1)
			}
		})
	}
	// Writing must have begun, or the cut falls into nothing.
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if count.Load() < int64(clients) && !e.Failed() {
			return fmt.Errorf("%d writes were acknowledged", count.Load())
		}
		return nil
	}))
	time.Sleep(rand.N(time.Second))
	off.Store(true)
	cut()
	cancel()
	wg.Wait()
	return count.Load()
}

// TestPowerCutOfTheDatastoresDisk kills umiak and at the same moment takes from the datastore's disk all
// that it did not sync, or any part of that, ten times in its long form. Containers run on, as they do over every kill.
func TestPowerCutOfTheDatastoresDisk(t *testing.T) {
	t.Parallel()
	const clients, each = 16, 5
	rounds := 5
	if long() {
		rounds = 10
	}
	d := &disk{Disk: powercut.New(), dir: cluster.Dirs().DB()}
	t.Cleanup(func() { // runs when the machine is gone
		if d.mounted == nil {
			return
		}
		select {
		case <-d.mounted.Gone():
		case <-time.After(10 * time.Second):
			t.Error("the machine is gone and its disk is still mounted")
		}
	})
	e := off(t, cluster.Options{Name: "cut"})
	d.mount(e)
	e.must(e.Start())
	e.ready()
	e.client("cli")
	before := e.containerProcesses()
	if len(before) < 3 { // shim, pause and app
		t.Fatalf("processes: %v", before)
	}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	records := make([]*record, clients*each)
	for i := range records {
		records[i] = &record{name: fmt.Sprintf("r%d", i)}
	}
	var acknowledged int64
	cuts, unsynced := 0, 0
	cut := func(first bool) {
		cuts++
		if first { // as when the disk fails: what umiak still answers for a moment must hold too
			unsynced += d.Cut(rng)
			time.Sleep(rand.N(20 * time.Millisecond))
			e.must(e.Kill())
		} else {
			e.must(e.Kill())
			unsynced += d.Cut(rng)
		}
		d.mount(e)
		e.must(e.Start())
	}
	for round := range rounds {
		acknowledged += load(e, records, clients, func() { cut(round%3 > 0) })
		if round%4 == 3 { // and again, while it starts
			time.Sleep(rand.N(2 * time.Second))
			cut(true)
		}
		e.must(e.APIReady(e.soon()))
		list, err := e.Kube.CoreV1().ConfigMaps(e.ns).List(e.soon(), metav1.ListOptions{})
		e.must(err)
		there := map[string]*corev1.ConfigMap{}
		for i := range list.Items {
			there[list.Items[i].Name] = &list.Items[i]
		}
		newest := version(list.ResourceVersion)
		for _, r := range records {
			if r.rv > newest {
				t.Errorf("round %d: %s was at %d, the newest is %d", round, r.name, r.rv, newest)
			}
			if err := r.check(there[r.name]); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		e.undamaged()
		if after := e.containerProcesses(); !slices.Equal(before, after) {
			t.Errorf("round %d: processes of containers were\n%s\nand are\n%s", round, strings.Join(before, "\n"),
				strings.Join(after, "\n"))
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d writes acknowledged, %d cuts, %d writes were not synced when they came", acknowledged, cuts, unsynced)
	if unsynced == 0 {
		t.Error("no cut found anything to drop, so nothing was shown")
	}

	e.must(e.Cluster.Ready(e.soon()))
	if p := e.pod(named("cli"), isReady); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("restarted: %s", describe(p))
	}
	e.client("new")
}

// undamaged wants umiak to say that it is well, and to have repaired nothing.
func (e *env) undamaged() {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status")
		if err == nil && !strings.Contains(out, "sqlite") {
			err = fmt.Errorf("it does not tell of its datastore: %s", out)
		}
		if strings.Contains(out, "look at this") {
			e.Fatalf("umiak status:\n%s", out)
		}
		return err
	}))
	e.must(e.M.Do(func() error {
		files, err := os.ReadDir(cluster.Dirs().DB())
		for _, f := range files {
			if strings.HasPrefix(f.Name(), "broken") {
				err = fmt.Errorf("the datastore was repaired: %v", files)
			}
		}
		return err
	}))
}
