package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

// containerProcesses are those of containers and their shims, told apart from later ones that were given
// the same number.
func (e *env) containerProcesses() []string {
	var out []string
	umiak := e.PID()
	for _, p := range e.M.Processes() {
		if p.PID != umiak && (strings.Contains(p.Command, "containerd-shim") ||
			strings.Contains(strings.Join(p.Args, " "), "/bin/app") || p.Command == "pause") {
			out = append(out, fmt.Sprintf("%d/%s %s", p.PID, p.Start, p.Command))
		}
	}
	slices.Sort(out)
	return out
}

// TestKill9UnderLoad kills umiak while clients write, 20 times in its long form.
func TestKill9UnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 8
	if long() {
		rounds = 20
	}
	e := own(t, cluster.Options{Name: "crash"}).ready()
	e.apply(deployment)
	e.rolledOut("web")
	before := e.containerProcesses()
	if len(before) < 6 { // two pods, each with shim, pause and server
		t.Fatalf("processes: %v", before)
	}

	// Clients write all the while. What was acknowledged is counted on both sides.
	var acknowledged sync.Map
	var count atomic.Int64
	load, stop := context.WithCancel(e.ctx)
	defer stop()
	var wg sync.WaitGroup
	cms := e.Kube.CoreV1().ConfigMaps(e.ns)
	for w := range 8 {
		wg.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				name := fmt.Sprintf("w%d-%d", w, i)
				short, cancel := context.WithTimeout(load, 5*time.Second)
				cm, err := cms.Create(short, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name},
					Data: map[string]string{"text": strings.Repeat(name, 50)}}, metav1.CreateOptions{})
				cancel()
				if err == nil {
					acknowledged.Store(name, cm.UID)
					count.Add(1)
				} else if load.Err() == nil {
					time.Sleep(20 * time.Millisecond) // the server is away; no event tells when it is back
				}
			}
		})
	}
	for i := range rounds {
		// Each kill falls into writing: it comes after a further number of acknowledged ones.
		goal := count.Load() + 50 + int64(i)*7
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if n := count.Load(); n < goal {
				return fmt.Errorf("round %d: %d writes acknowledged of %d\n%s", i, n, goal, e.LogTail(5))
			}
			return nil
		}))
		e.must(e.Kill())
		e.must(e.Start())
	}
	goal := count.Load() + 50
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if count.Load() < goal {
			return fmt.Errorf("after the last start: %s", e.LogTail(5))
		}
		return nil
	}))
	stop()
	wg.Wait()
	e.must(e.Cluster.Ready(e.soon()))
	t.Logf("%d writes were acknowledged", count.Load())

	list, err := cms.List(e.ctx, metav1.ListOptions{})
	e.must(err)
	have := map[string]string{}
	for _, cm := range list.Items {
		have[cm.Name] = string(cm.UID)
		if strings.HasPrefix(cm.Name, "w") && cm.Data["text"] != strings.Repeat(cm.Name, 50) {
			t.Errorf("%s reads as %q", cm.Name, cm.Data["text"])
		}
	}
	lost := 0
	acknowledged.Range(func(k, v any) bool {
		if have[k.(string)] != fmt.Sprint(v) {
			lost++
		}
		return true
	})
	if lost > 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, count.Load())
	}
	if after := e.containerProcesses(); !slices.Equal(before, after) {
		t.Errorf("processes of containers were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	l, err := e.Kube.CoreV1().Pods(e.ns).List(e.ctx, labeled("app=web"))
	e.must(err)
	for _, p := range l.Items {
		if p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("restarted: %s", describe(&p))
		}
	}
	// The cluster still works: pods of before answer, and new ones start.
	e.client("cli")
	e.in1("cli", l.Items[0].Status.PodIP)
}

func (e *env) in1(from, ip string) {
	e.Helper()
	if _, err := e.in(from, "get", "http://"+ip+":8080/"); err != nil {
		e.Errorf("a pod of before does not answer: %v", err)
	}
}

func TestStopAndStartLeavesContainersAlone(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "again"}).ready()
	e.apply(deployment)
	e.rolledOut("web")
	before := e.containerProcesses()
	begun := time.Now()
	e.must(e.Stop(e.within(40 * time.Second)))
	t.Logf("stopped in %s", time.Since(begun).Round(time.Millisecond))
	if after := e.containerProcesses(); !slices.Equal(before, after) {
		t.Fatalf("stopping changed containers: %v, %v", before, after)
	}
	// What came meanwhile is seen: an image in the folder, and a settings file with an error in it.
	e.must(e.Configure(map[string]string{"tls-sann": "x"}))
	e.must(e.Start())
	<-e.Exited()
	if tail := e.LogTail(5); !strings.Contains(tail, "did you mean tls-san?") {
		t.Errorf("a misspelled setting: %s", tail)
	}
	e.must(e.Configure(nil))
	e.must(e.Start())
	e.must(e.Cluster.Ready(e.soon()))
	e.rolledOut("web")
	if after := e.containerProcesses(); !slices.Equal(before, after) {
		t.Errorf("starting changed containers: %v, %v", before, after)
	}
}

func TestPowerCutAndBoot(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "power"}).ready()
	e.apply(deployment)
	e.rolledOut("web")
	e.must(e.M.PowerOff())
	<-e.Exited()
	e.must(e.M.Boot())
	e.must(e.Start())
	e.must(e.Cluster.Ready(e.within(2 * patience)))
	l, err := cluster.Until(e.within(2*patience), e.Kube.CoreV1().Pods(e.ns), labeled("app=web"),
		func(p *corev1.Pod) (bool, string) {
			ok, s := isReady(p)
			return ok && p.Status.ContainerStatuses[0].RestartCount > 0, s
		})
	e.must(err)
	e.client("cli")
	e.in1("cli", l.Status.PodIP)
}

func TestImagesFolder(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "img", Images: []string{}})
	e.must(e.APIReady(e.soon()))
	e.must(e.NodeReady(e.soon())) // with no image at all
	e.must(e.ServiceAccount(e.soon(), "default"))
	e.namespace()
	has := func(ref string) {
		t.Helper()
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			list, err := e.Umiak(ctx, "ctr", "-n", "k8s.io", "images", "list", "-q")
			if err == nil && !strings.Contains(list, ref) {
				err = fmt.Errorf("%s is not among %q", ref, strings.Fields(list))
			}
			return err
		}))
	}
	// Files that appear while it runs, in every form.
	for file, ref := range map[string]string{"a.oci.tar.zst": images.App1, "b.tar.gz": images.App2,
		"c.tar": images.Bench} {
		e.must(e.AddImages(file, ref))
		has(ref)
	}
	// A broken file is reported and harms nothing.
	e.must(os.WriteFile(e.M.Host(cluster.Dirs().Images()+"/broken.tar"), []byte("not an archive"), 0o644))
	e.client("cli")
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if raw, err := os.ReadFile(e.LogFile()); err != nil || !strings.Contains(string(raw), "broken.tar") {
			return fmt.Errorf("the log does not name broken.tar: %w", err)
		}
		return nil
	}))
}

func TestTwoServersOnOneDataDirectory(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "twice"}).ready()
	_, err := e.Umiak(e.within(20*time.Second), "server")
	if err == nil || !strings.Contains(err.Error(), "another umiak is using this data directory") {
		t.Errorf("the second server says: %v", err)
	}
	if _, err := e.Kube.CoreV1().Nodes().Get(e.ctx, "twice", getOptions); err != nil {
		t.Errorf("the first one was harmed: %v", err)
	}
}

func TestTwoClustersShareNothing(t *testing.T) {
	t.Parallel()
	a := own(t, cluster.Options{Name: "same"})
	b := own(t, cluster.Options{Name: "same"})
	a.ready()
	b.ready()
	for _, e := range []*env{a, b} {
		e.apply(deployment)
		e.rolledOut("web")
	}
	if _, err := b.Kube.CoreV1().Namespaces().Get(b.ctx, a.ns, getOptions); !apierrors.IsNotFound(err) {
		t.Errorf("one cluster's namespace in the other: %v", err)
	}
	if _, err := b.Umiak(b.soon(), "cleanup", "--purge"); err == nil {
		t.Error("cleanup while umiak runs must refuse")
	}
	b.must(b.Stop(b.soon()))
	_, err := b.Umiak(b.soon(), "cleanup", "--purge")
	b.must(err)
	// Taking one away leaves the other as it was.
	a.rolledOut("web")
	a.client("cli")
	l, err := a.Kube.CoreV1().Pods(a.ns).List(a.ctx, labeled("app=web"))
	a.must(err)
	a.in1("cli", l.Items[0].Status.PodIP)
}

func TestCleanupLeavesNothing(t *testing.T) {
	c, err := cluster.New(cluster.Options{Name: "clean"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Destroy(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	e := &env{T: t, Cluster: c, ctx: ctx}
	if out, err := c.Umiak(e.soon(), "check"); err != nil {
		t.Errorf("check on an empty machine: %v\n%s", err, out)
	}
	before, err := c.M.Snapshot(ctx, "/var/lib/umiak", "/etc/umiak")
	e.must(err)
	e.must(c.Start())
	e.must(c.Ready(e.within(2 * patience)))
	ns, err := c.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "work"}},
		metav1.CreateOptions{})
	e.must(err)
	e.ns = ns.Name
	e.must(c.ServiceAccount(e.soon(), e.ns))
	e.apply(deployment + fmt.Sprintf("---\n"+web, e.ns) + `
---
apiVersion: v1
kind: Pod
metadata: {name: ports}
spec:
  volumes: [{name: m, emptyDir: {medium: Memory}}]
  containers: [{name: c, image: "registry.test/app:1", ports: [{containerPort: 8080, hostPort: 18080}], volumeMounts: [{name: m, mountPath: /m}]}]
`)
	e.rolledOut("web")
	e.pod(named("ports"), isReady)
	e.must(c.Stop(e.soon()))
	if during, err := c.M.Snapshot(ctx, "/var/lib/umiak", "/etc/umiak"); err != nil || len(before.Diff(during)) < 20 {
		t.Errorf("pods leave no traces? %v, %v", before.Diff(during), err)
	}
	out, err := c.Umiak(e.soon(), "cleanup")
	e.must(err)
	t.Logf("cleanup: %s", out)
	after, err := c.M.Snapshot(ctx, "/var/lib/umiak", "/etc/umiak")
	e.must(err)
	if diff := before.Diff(after); len(diff) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(diff, "\n"))
		t.Logf("evidence: %s", c.Collect("failure"))
	}
	// The data is still there, and the cluster comes back from it: also where the machine shares no mounts, and the data
	// directory is a link to another disk, with a disk in it.
	_, err = c.M.Run(ctx, "sh", "-euc", `cd /var/lib; mkdir disk; mount --bind disk disk; mv umiak disk/data; ln -s disk/data umiak
		mkdir -p umiak/server/snapshots; mount -t tmpfs share disk/data/server/snapshots; echo x >umiak/server/snapshots/precious; mount --make-rprivate /`)
	e.must(err)
	exclude := []string{"/var/lib/umiak", "/etc/umiak", "/var/lib/disk/data"}
	before, err = c.M.Snapshot(ctx, exclude...)
	e.must(err)
	e.must(c.Start())
	e.must(c.Ready(e.within(2 * patience)))
	e.rolledOut("web")
	e.client("again")
	e.must(c.Stop(e.soon()))
	out, err = c.Umiak(e.soon(), "cleanup", "--purge")
	e.must(err)
	t.Logf("cleanup --purge: %s", out)
	after, err = c.M.Snapshot(ctx, exclude...)
	e.must(err)
	if diff := before.Diff(after); len(diff) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(diff, "\n"))
		t.Logf("evidence: %s", c.Collect("failure"))
	}
	left, err := c.M.Run(ctx, "sh", "-euc", "cd /var/lib/disk/data; find . ! -type d")
	e.must(err)
	if strings.TrimSpace(left) != "./server/snapshots/precious" {
		t.Errorf("left of the data: %s", left)
	}
}
