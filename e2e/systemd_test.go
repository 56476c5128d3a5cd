package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/debian"
	"github.com/umiak-io/umiak/e2e/machine"
)

// box is a freshly installed Debian with systemd, on which umiak is a service.
type box struct{ *env }

// newBox boots a Debian. Umiak is installed by service or by install.
func newBox(t *testing.T, name string) *box {
	t.Helper()
	return newBoxOn(t, name, nil)
}

func newBoxOn(t *testing.T, name string, l *machine.LAN) *box {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // for the one time it is downloaded
	defer cancel()
	sys, err := debian.New(ctx)
	if errors.Is(err, debian.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(cluster.Options{Name: name, LAN: l, System: sys})
	if err != nil {
		t.Fatal(err)
	}
	b := &box{&env{T: t, Cluster: c}}
	b.ctx = b.within(8 * time.Minute)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("evidence: %s", c.Collect("failure"))
		}
		if err := c.Destroy(); err != nil {
			t.Errorf("destroy: %v", err)
		}
		if !t.Failed() {
			_ = os.RemoveAll(c.Evidence)
		}
	})
	b.must(debian.Booted(b.soon(), c.M))
	return b
}

// service puts the unit and the program where install.sh does.
func (b *box) service() {
	b.Helper()
	root, err := cluster.Checkout()
	b.must(err)
	unit, err := exec.CommandContext(b.soon(), filepath.Join(root, "install.sh"), "--print-unit", "server").Output()
	b.must(err)
	b.must(b.M.Do(func() error {
		return errors.Join(os.WriteFile("/etc/systemd/system/umiak.service", unit, 0o644),
			os.Symlink(filepath.Join(b.M.Bin(), "umiak"), "/usr/local/bin/umiak"))
	}))
	b.systemctl("daemon-reload")
}

func (b *box) systemctl(args ...string) string {
	b.Helper()
	out, err := debian.Systemctl(b.soon(), b.M, args...)
	b.must(err)
	return strings.TrimSpace(out)
}

// up boots the machine, if it is off, and waits for the node.
func (b *box) up() {
	b.Helper()
	if b.M.PID == 0 {
		b.must(b.M.Boot())
	}
	b.must(debian.Booted(b.within(2*patience), b.M))
	b.must(b.Cluster.Ready(b.within(2 * patience)))
}

// mainPID is umiak's process as the machine numbers it.
func (b *box) mainPID() string {
	b.Helper()
	return b.systemctl("show", "--property=MainPID", "--value", "umiak")
}

// sub runs a part of the test under a name of its own.
func (b *box) sub(name string, f func(b *box)) {
	b.env.sub(name, func(e *env) { f(&box{e}) })
}

// lasting are containers that write down how they are stopped. A fast end would not show that shutdown
// waits for them, so each takes a few seconds.
const lasting = `
apiVersion: v1
kind: Pod
metadata: {name: normal}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: log, hostPath: {path: /etc/e2e, type: DirectoryOrCreate}}]
  containers:
  - name: c
    image: registry.test/app:1
    command: [sh, -c, "trap 'echo normal term >>/log/order; sleep 3; echo normal end >>/log/order; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo normal prestop >>/log/order; sleep 2"]}}}
    volumeMounts: [{name: log, mountPath: /log}]
---
apiVersion: v1
kind: Pod
metadata: {name: critical}
spec:
  priorityClassName: system-node-critical
  terminationGracePeriodSeconds: 8
  volumes: [{name: log, hostPath: {path: /etc/e2e, type: DirectoryOrCreate}}]
  containers:
  - name: c
    image: registry.test/app:1
    command: [sh, -c, "trap 'echo critical term >>/log/order; sleep 2; echo critical end >>/log/order; exit 0' TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: log, mountPath: /log}]
`

// inOrder is what they write when the machine shuts down as it should.
var inOrder = []string{"normal prestop", "normal term", "normal end", "critical term", "critical end"}

// order returns the lines written since the last call.
func (b *box) order() []string {
	b.Helper()
	f := b.hostPath("/etc/e2e/order")
	raw, err := os.ReadFile(f)
	if err == nil {
		err = os.Remove(f)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
	return strings.FieldsFunc(string(raw), func(r rune) bool { return r == '\n' })
}

// runLasting creates the pods of lasting again: those that a shutdown has stopped stay Failed.
func (b *box) runLasting() {
	b.Helper()
	b.kubectl("delete", "pod", "normal", "critical", "--ignore-not-found", "--force", "--grace-period=0")
	b.apply(lasting)
	b.pod(named("normal"), isReady)
	b.pod(named("critical"), isReady)
}

// answers checks that a new pod reaches a Service, its name and a pod of before.
func (b *box) answers(client string) {
	b.Helper()
	b.kubectl("delete", "pod", client, "--ignore-not-found", "--force", "--grace-period=0")
	b.client(client)
	b.must(cluster.Eventually(b.soon(), func(context.Context) error {
		_, err := b.in(client, "get", "http://web."+b.ns+".svc.cluster.local/")
		return err
	}))
}

// leftovers looks for what a boot must not find of the one before: addresses that belong to no pod, network
// namespaces without processes, mounts of pods that are gone.
func (b *box) leftovers() {
	b.Helper()
	err := cluster.Eventually(b.soon(), func(ctx context.Context) error {
		pods, err := b.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		ips, uids, live := map[string]bool{}, map[string]bool{}, 0
		for _, p := range pods.Items {
			uids[string(p.UID)] = true
			if p.Status.Phase == corev1.PodRunning && !p.Spec.HostNetwork {
				ips[p.Status.PodIP] = true
				live++
			}
		}
		var wrong []string
		netns := 0
		err = b.M.Do(func() error {
			leases, err := filepath.Glob("/run/umiak/cni/*/*.*.*.*")
			for _, l := range leases {
				if !ips[filepath.Base(l)] {
					wrong = append(wrong, "lease "+l)
				}
			}
			if len(leases) != live {
				wrong = append(wrong, fmt.Sprintf("%d leases for %d pods", len(leases), live))
			}
			ns, err2 := filepath.Glob("/run/umiak/containerd/io.containerd.grpc.v1.cri/netns/cni-*")
			netns = len(ns)
			raw, err3 := os.ReadFile("/proc/1/mountinfo")
			for line := range strings.Lines(string(raw)) {
				if at := strings.Fields(line)[4]; strings.Contains(at, "/kubelet/pods/") {
					uid := strings.Split(strings.SplitN(at, "/kubelet/pods/", 2)[1], "/")[0]
					if !uids[uid] {
						wrong = append(wrong, "mount "+at)
					}
				}
			}
			return errors.Join(err, err2, err3)
		})
		if err == nil && netns != live {
			wrong = append(wrong, fmt.Sprintf("%d network namespaces for %d pods", netns, live))
		}
		if err == nil && len(wrong) > 0 {
			err = errors.New(strings.Join(wrong, "; "))
		}
		return err
	})
	if err != nil {
		b.Error(err)
	}
}

// containers are the processes of containers and their shims, without those that a shell is about to turn
// into sleep, which still look like the shell.
func (b *box) containers() []string {
	var out []string
	all := b.M.Processes()
	lasting := map[int]bool{}
	for _, p := range all {
		lasting[p.PID] = strings.HasPrefix(strings.Join(p.Args, " "), "sh -c trap")
	}
	for _, p := range all {
		args := strings.Join(p.Args, " ")
		if strings.Contains(p.Command, "containerd-shim") || p.Command == "pause" ||
			strings.HasPrefix(args, "/bin/app") || lasting[p.PID] && !lasting[p.Parent] {
			out = append(out, fmt.Sprintf("%d/%s %s", p.PID, p.Start, p.Command))
		}
	}
	slices.Sort(out)
	return out
}

func (b *box) untouched(before []string, by string) {
	b.Helper()
	if after := b.containers(); !slices.Equal(before, after) {
		b.Errorf("%s changed the processes of containers from\n%s\nto\n%s", by, strings.Join(before, "\n"),
			strings.Join(after, "\n"))
	}
}

func TestSystemd(t *testing.T) {
	t.Parallel()
	b := newBox(t, "deb")
	b.service()
	exclude := []string{"/var/lib/umiak", "/etc/umiak", "/etc/e2e", "/run/systemd", "/run/log", "/run/udev",
		"/var/log/journal"}
	before, err := b.M.Snapshot(b.ctx, exclude...)
	b.must(err)

	begun := time.Now()
	b.systemctl("start", "umiak") // returns when umiak is ready
	t.Logf("systemctl start returned after %s", time.Since(begun).Round(time.Millisecond))
	b.systemctl("enable", "umiak")
	b.up()
	b.namespace()
	b.apply(deployment + `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
	b.rolledOut("web")
	b.runLasting()
	b.answers("cli")

	b.sub("OnlyUmiakStops", func(b *box) {
		have := b.containers()
		if len(have) < 15 { // five pods, each with shim, pause and a program
			b.Fatalf("processes: %v", have)
		}
		pid := b.mainPID()
		b.systemctl("restart", "umiak")
		b.up()
		b.untouched(have, "systemctl restart")
		again := b.mainPID()
		if again == pid {
			b.Errorf("umiak is still process %s", pid)
		}
		// It signals all processes of the unit, of which shims must be none.
		b.systemctl("kill", "-s", "KILL", "umiak")
		b.must(cluster.Eventually(b.soon(), func(context.Context) error {
			if now := b.mainPID(); now == again || now == "0" {
				return fmt.Errorf("main process is %s", now)
			}
			return nil
		}))
		b.up()
		b.untouched(have, "systemctl kill")
		b.systemctl("stop", "umiak")
		b.untouched(have, "systemctl stop")
		b.systemctl("start", "umiak")
		b.up()
		b.rolledOut("web")
		b.untouched(have, "systemctl start")
		if got := b.order(); len(got) > 0 {
			b.Errorf("containers were told to stop: %q", got)
		}
		b.answers("cli")
	})

	b.sub("PowerOff", func(b *box) {
		conf, err := os.ReadFile(b.hostPath("/etc/systemd/logind.conf.d/99-kubelet.conf"))
		if err != nil || !strings.Contains(string(conf), "InhibitDelayMaxSec=30") {
			b.Errorf("logind was not told to wait: %q, %v", conf, err)
		}
		list, err := b.M.Run(b.ctx, "/usr/bin/systemd-inhibit", "--list", "--no-legend")
		if err != nil || !strings.Contains(list, "kubelet") {
			b.Errorf("no inhibitor: %q, %v", list, err)
		}
		begun := time.Now()
		b.must(debian.PowerOff(b.within(2*patience), b.M))
		b.Logf("off after %s", time.Since(begun).Round(time.Millisecond))
		if got := b.order(); !slices.Equal(got, inOrder) {
			b.Errorf("containers were stopped as %q, want %q", got, inOrder)
		}
	})

	b.sub("Boot", func(b *box) {
		b.up()
		b.rolledOut("web")
		b.answers("cli")
		b.leftovers()
		b.runLasting()
	})

	b.sub("Reboot", func(b *box) {
		b.apply(endless)
		b.pod(labeled("app=endless"), isReady)
		begun := time.Now()
		b.must(debian.Reboot(b.within(2*patience), b.M))
		b.Logf("down after %s", time.Since(begun).Round(time.Millisecond))
		if got := b.order(); !slices.Equal(got, inOrder) {
			b.Errorf("containers were stopped as %q, want %q", got, inOrder)
		}
		b.up()
		b.rolledOut("web")
		b.answers("cli")
		b.leftovers()
		b.replaced()
	})

	b.sub("PowerCut", func(b *box) {
		acknowledged := b.writeUntil(func() { b.must(b.M.PowerOff()) })
		b.up()
		b.kept(acknowledged)
		b.Logf("%d writes were acknowledged", len(acknowledged))
		b.rolledOut("web")
		b.answers("cli")
		b.leftovers()
	})

	b.sub("Cleanup", func(b *box) {
		b.systemctl("disable", "--now", "umiak")
		out, err := b.Umiak(b.soon(), "cleanup", "--purge")
		b.must(err)
		// The machine was booted since: what systemd itself has made differs, its files are left out above.
		after, err := b.M.Snapshot(b.ctx, exclude...)
		b.must(err)
		if diff := before.Diff(after); len(diff) > 0 {
			b.Errorf("left behind:\n%s\ncleanup said:\n%s", strings.Join(diff, "\n"), out)
		}
		if left, err := os.ReadDir(b.hostPath("/var/lib/umiak")); err != nil || len(left) > 0 {
			b.Errorf("purge left %v, %v", left, err)
		}
	})
}

// endless is a Job that a shutdown interrupts.
const endless = `
apiVersion: batch/v1
kind: Job
metadata: {name: endless}
spec:
  template:
    metadata: {labels: {app: endless}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "registry.test/app:1", command: [sh, -c, "while :; do sleep 1; done"]}]
`

// replaced waits until controllers have other pods in place of those that a shutdown ended, which are gone then; a Job
// has counted its own.
func (b *box) replaced() {
	b.Helper()
	b.must(cluster.Eventually(b.within(2*patience), func(ctx context.Context) error {
		pods, err := b.Kube.CoreV1().Pods(b.ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		var wrong []string
		job := false
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodFailed && metav1.GetControllerOf(&p) != nil {
				wrong = append(wrong, describe(&p))
			}
			job = job || p.Labels["app"] == "endless" && p.Status.Phase == corev1.PodRunning
		}
		j, err := b.Kube.BatchV1().Jobs(b.ns).Get(ctx, "endless", metav1.GetOptions{})
		if err == nil && (len(wrong) > 0 || !job || j.Status.Failed < 1) {
			err = fmt.Errorf("failed pods beside others: %q; the Job runs: %v, failures it has counted: %d", wrong, job,
				j.Status.Failed)
		}
		return err
	}))
}

// kept checks that no write of writeUntil is lost.
func (b *box) kept(acknowledged map[string]string) {
	b.Helper()
	list, err := b.Kube.CoreV1().ConfigMaps(b.ns).List(b.ctx, metav1.ListOptions{})
	b.must(err)
	have := map[string]bool{}
	for _, cm := range list.Items {
		have[string(cm.UID)] = true
	}
	for name, uid := range acknowledged {
		if !have[uid] {
			b.Errorf("%s was acknowledged and is lost", name)
		}
	}
}

// writeUntil creates ConfigMaps from several clients, cuts in the midst of it and returns the UIDs of what
// was acknowledged.
func (b *box) writeUntil(cut func()) map[string]string {
	b.Helper()
	acknowledged := map[string]string{}
	var mu sync.Mutex
	load, stop := context.WithCancel(b.ctx)
	defer stop()
	enough := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				name := fmt.Sprintf("w%d-%d", w, i)
				short, cancel := context.WithTimeout(load, 5*time.Second)
				cm, err := b.Kube.CoreV1().ConfigMaps(b.ns).Create(short,
					&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name},
						Data: map[string]string{"text": strings.Repeat(name, 50)}}, metav1.CreateOptions{})
				cancel()
				if err != nil {
					return // the power is cut
				}
				mu.Lock()
				if acknowledged[name] = string(cm.UID); len(acknowledged) == 500 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-b.within(patience).Done():
		b.Error("500 writes were not acknowledged in time")
	}
	cut()
	stop()
	wg.Wait()
	return acknowledged
}
