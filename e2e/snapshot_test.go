package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/testing/s3server"
)

// identities are what must not change: UIDs by kind and name.
func (e *env) identities() map[string]string {
	e.Helper()
	out := map[string]string{}
	pods, err := e.Kube.CoreV1().Pods(e.ns).List(e.ctx, labeled("app=web"))
	e.must(err)
	for _, p := range pods.Items {
		out["pod "+p.Name] = string(p.UID)
	}
	d, err := e.Kube.AppsV1().Deployments(e.ns).Get(e.ctx, "web", metav1.GetOptions{})
	e.must(err)
	out["deployment"] = string(d.UID)
	s, err := e.Kube.CoreV1().Secrets(e.ns).Get(e.ctx, "s", metav1.GetOptions{})
	e.must(err)
	out["secret "+string(s.Data["password"])] = string(s.UID)
	ns, err := e.Kube.CoreV1().Namespaces().Get(e.ctx, "kube-system", metav1.GetOptions{})
	e.must(err)
	out["cluster"] = string(ns.UID)
	return out
}

// expired waits until a watch of ConfigMaps from a resource version is refused as too old.
func (e *env) expired(resourceVersion string) {
	e.Helper()
	w, err := e.Kube.CoreV1().ConfigMaps(e.ns).Watch(e.soon(), metav1.ListOptions{ResourceVersion: resourceVersion})
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	e.must(err)
	defer w.Stop()
	ev, ok := <-w.ResultChan()
	if !ok || ev.Type != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(ev.Object)) &&
		!apierrors.IsGone(apierrors.FromObject(ev.Object)) {
		e.Fatalf("a watch from %s got %v %v", resourceVersion, ev.Type, ev.Object)
	}
}

func TestSnapshotComesBackOnANewMachine(t *testing.T) {
	t.Parallel()
	a := own(t, cluster.Options{Name: "snap"}).ready()
	a.apply(deployment + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: hush}\n")
	a.rolledOut("web")
	want := a.identities()
	containers := map[string]string{}
	pods, err := a.Kube.CoreV1().Pods(a.ns).List(a.ctx, labeled("app=web"))
	a.must(err)
	for _, p := range pods.Items {
		containers[p.Name] = p.Status.ContainerStatuses[0].ContainerID
	}

	a.must(os.WriteFile(a.hostPath("/var/lib/passphrase"), []byte("a very secret one\n"), 0o600))
	out, err := a.Umiak(a.soon(), "snapshot", "save", "--snapshot-passphrase-file", "/var/lib/passphrase",
		"before-wipe")
	a.must(err)
	file := strings.TrimSpace(out)
	raw, err := os.ReadFile(a.hostPath(file))
	a.must(err)
	if list, err := a.Umiak(a.soon(), "snapshot", "list"); err != nil || !strings.Contains(list, filepath.Base(file)) ||
		!strings.Contains(list, "encrypted") {
		t.Errorf("list: %v\n%s", err, list)
	}
	if out, err := a.Umiak(a.soon(), "snapshot", "restore", file); err == nil ||
		!strings.Contains(fmt.Sprint(out, err), "another umiak is using") {
		t.Errorf("restored beneath a running server: %v\n%s", err, out)
	}
	// Written after the snapshot: clients know it, the restored cluster does not.
	late, err := a.Kube.CoreV1().ConfigMaps(a.ns).Create(a.ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{})
	a.must(err)
	a.must(a.Stop(a.soon()))

	b := off(t, cluster.Options{Name: "snap"})
	b.ns = a.ns
	for name, data := range map[string][]byte{"whole": raw, "cut": raw[:len(raw)-100],
		"passphrase": []byte("a very secret one"), "wrong": []byte("another")} {
		b.must(os.WriteFile(b.hostPath("/var/lib", name), data, 0o600))
	}
	restore := func(file, pass string) (string, error) {
		return b.Umiak(b.soon(), "snapshot", "restore", "--snapshot-passphrase-file", pass, file)
	}
	for _, c := range []struct{ file, pass, want string }{
		{"/var/lib/cut", "/var/lib/passphrase", "read snapshot /var/lib/cut: the snapshot is truncated"},
		{"/var/lib/whole", "/var/lib/wrong", "wrong passphrase"},
	} {
		if out, err := restore(c.file, c.pass); err == nil || !strings.Contains(fmt.Sprint(out, err), c.want) {
			t.Errorf("%s: %v\n%s", c.file, err, out)
		}
	}
	if _, err := os.Stat(b.hostPath("/var/lib/umiak/server")); err == nil {
		t.Error("a refused restore left something")
	}
	if out, err = restore("/var/lib/whole", "/var/lib/passphrase"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.must(b.Start())
	b.must(b.Cluster.Ready(b.within(2 * patience)))
	b.expired(late.ResourceVersion)
	for name, id := range containers {
		b.pod(named(name), func(p *corev1.Pod) (bool, string) {
			cs := p.Status.ContainerStatuses
			return len(cs) == 1 && cs[0].Ready && cs[0].ContainerID != id && cs[0].State.Running != nil, describe(p)
		})
	}
	if got := b.identities(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v became %v", want, got)
	}
	if _, err := b.Kube.CoreV1().ConfigMaps(b.ns).Get(b.ctx, "late", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was written after the snapshot: %v", err)
	}
}

func TestSnapshotComesBackFromABucket(t *testing.T) {
	t.Parallel()
	l, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	srv := s3server.StartAt(t, l.Gateway(), l.Do)
	ca, err := os.ReadFile(srv.Config.EndpointCA)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{
		"snapshot-s3-bucket": srv.Config.Bucket, "snapshot-s3-folder": srv.Config.Folder,
		"snapshot-s3-endpoint":   srv.Config.Endpoint,
		"snapshot-s3-access-key": srv.Config.AccessKey, "snapshot-s3-secret-key-file": "/var/lib/s3-key",
		"snapshot-s3-endpoint-ca": "/var/lib/s3-ca",
		"snapshot-s3-unencrypted": "true",
	}
	prepare := func(e *env) {
		e.must(os.WriteFile(e.hostPath("/var/lib/s3-key"), []byte(srv.Config.SecretKey+"\n"), 0o600))
		e.must(os.WriteFile(e.hostPath("/var/lib/s3-ca"), ca, 0o600))
	}
	a := off(t, cluster.Options{Name: "bucket", LAN: l, Settings: settings})
	prepare(a)
	a.must(a.Start())
	a.ready()
	_, err = a.Kube.CoreV1().ConfigMaps(a.ns).Create(a.ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{})
	a.must(err)
	file, err := a.Umiak(a.soon(), "snapshot", "save", "before-wipe")
	a.must(err)
	name := filepath.Base(strings.TrimSpace(file))
	list, err := a.Umiak(a.soon(), "snapshot", "list")
	if err != nil || !strings.Contains(list, name) || !strings.Contains(list, "here,s3") {
		t.Errorf("list: %v\n%s", err, list)
	}
	if out, err := a.Umiak(a.soon(), "status"); err != nil || !strings.Contains(out, "up to date") ||
		strings.Contains(out, srv.Config.SecretKey) {
		t.Errorf("status: %v\n%s", err, out)
	}
	a.must(a.Stop(a.soon()))

	b := off(t, cluster.Options{Name: "bucket2", LAN: l})
	b.ns = a.ns
	prepare(b)
	var flags []string
	for key, value := range settings {
		flags = append(flags, "--"+key+"="+value)
	}
	list, err = b.Umiak(b.soon(), append([]string{"snapshot", "list"}, flags...)...)
	if err != nil || !strings.Contains(list, name) {
		t.Errorf("list on the fresh machine: %v\n%s", err, list)
	}
	out, err := b.Umiak(b.soon(), append(append([]string{"snapshot", "restore"}, flags...), name)...)
	if err != nil || !strings.Contains(out, "keys of bucket") {
		t.Fatalf("%v\n%s", err, out)
	}
	b.must(b.Start())
	b.must(b.APIReady(b.within(2 * patience)))
	if _, err := b.Kube.CoreV1().ConfigMaps(b.ns).Get(b.ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	b.bucketOfASecret(srv, ca)
}

// bucketOfASecret uploads with the settings of a Secret, whose keys have the names that k3s gave them.
func (e *env) bucketOfASecret(srv *s3server.Server, ca []byte) {
	e.Helper()
	_, err := e.Kube.CoreV1().Secrets(metav1.NamespaceSystem).Create(e.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bucket"}, StringData: map[string]string{
			"etcd-s3-bucket": srv.Config.Bucket, "etcd-s3-folder": "by-secret", "etcd-s3-endpoint": srv.Config.Endpoint,
			"etcd-s3-endpoint-ca": string(ca), "etcd-s3-access-key": srv.Config.AccessKey,
			"etcd-s3-secret-key": srv.Config.SecretKey,
		}}, metav1.CreateOptions{})
	e.must(err)
	e.must(e.Stop(e.soon()))
	e.must(e.Configure(map[string]string{"snapshot-s3-config-secret": "bucket", "snapshot-s3-unencrypted": "true"}))
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	file, err := e.Umiak(e.soon(), "snapshot", "save", "by-secret")
	e.must(err)
	list, err := e.Umiak(e.soon(), "snapshot", "list")
	if l := lineWith(list, []string{filepath.Base(strings.TrimSpace(file))}); err != nil || !strings.Contains(l, "here,s3") {
		e.Errorf("list: %v\n%s", err, list)
	}
}

func TestSQLiteMovesIntoEtcdOnRestart(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "toetcd"}).ready()
	const n = 10_000
	cms := e.Kube.CoreV1().ConfigMaps(e.ns)
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			for i := w; i < n; i += 12 {
				if _, err := cms.Create(e.ctx,
					&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)},
						Data: map[string]string{"text": strings.Repeat("x", 300)}},
					metav1.CreateOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	list := func() (map[string]string, string) {
		l, err := cms.List(e.ctx, metav1.ListOptions{})
		e.must(err)
		out := map[string]string{}
		for _, cm := range l.Items {
			out[cm.Name] = string(cm.UID) + " " + cm.ResourceVersion
		}
		return out, l.ResourceVersion
	}
	before, rev := list()
	leases, err := e.Kube.CoordinationV1().Leases("kube-node-lease").List(e.ctx, metav1.ListOptions{})
	e.must(err)

	e.must(e.Stop(e.soon()))
	e.must(e.Start("--cluster-init"))
	e.must(e.Cluster.Ready(e.within(2 * patience)))
	cms = e.Kube.CoreV1().ConfigMaps(e.ns)
	after, _ := list()
	if len(after) < n {
		t.Errorf("%d objects became %d", len(before), len(after))
	}
	for name, id := range before {
		if after[name] != id {
			t.Errorf("%s: %q became %q", name, id, after[name])
		}
	}
	e.expired(rev)
	w, err := e.Kube.CoordinationV1().Leases("kube-node-lease").Watch(e.soon(),
		metav1.ListOptions{ResourceVersion: leases.ResourceVersion})
	if err == nil {
		if ev, ok := <-w.ResultChan(); !ok || ev.Type != watch.Error {
			t.Errorf("a watch of Leases from before got %v", ev)
		}
		w.Stop()
	} else if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Error(err)
	}
	kept, _ := filepath.Glob(e.hostPath("/var/lib/umiak/server/db/sqlite-before-etcd-*", "state.db"))
	if len(kept) != 1 {
		t.Errorf("the old file: %v", kept)
	}
	// The node was ready before, so nothing has waited for all parts.
	var out string
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) (err error) {
		out, err = e.Umiak(ctx, "status", "-o", "json")
		return err
	}))
	var rep status.Report
	e.must(json.Unmarshal([]byte(out), &rep))
	found := false
	for _, s := range rep.Sections {
		for _, r := range s.Rows {
			found = found || s.Name == "Datastore" && r.Name == "member toetcd" && r.State == "leader"
		}
	}
	if !found {
		t.Errorf("status does not name the member:\n%s", out)
	}

	// It stays there without the flag, and a snapshot of it is one like any other.
	e.must(e.Stop(e.soon()))
	file, err := e.Umiak(e.soon(), "snapshot", "save") // of a stopped server
	e.must(err)
	if !strings.Contains(file, "on-demand-toetcd-") {
		t.Errorf("saved %q", file)
	}
	e.must(e.Start())
	e.must(e.Cluster.Ready(e.within(2 * patience)))
	if again, _ := list(); len(again) < n {
		t.Errorf("%d objects after a restart", len(again))
	}
}
