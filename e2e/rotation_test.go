package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/server/pki"
)

// writer writes through the servers by turns, and through the next one when one does not answer: what it cannot write
// nobody could, for long.
func (e *env) writer(p *probes, name string, servers ...*cluster.Cluster) (stop func(), written func() int) {
	e.Helper()
	n := 0
	var clients []kubernetes.Interface
	for _, c := range servers {
		clients = append(clients, c.Kube)
	}
	_, err := e.Kube.CoreV1().ConfigMaps(e.ns).Create(e.soon(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	e.must(err)
	stop = p.probe("a write through any server, by "+name, func(ctx context.Context) error {
		var errs []error
		for try := range 3 * len(clients) {
			c := clients[(n+try)%len(clients)].CoreV1().ConfigMaps(e.ns)
			short, end := context.WithTimeout(ctx, 5*time.Second)
			m, err := c.Get(short, name, getOptions)
			if err == nil {
				m.Data = map[string]string{"n": fmt.Sprint(n + 1)}
				_, err = c.Update(short, m, metav1.UpdateOptions{})
			}
			end()
			if err == nil {
				n++
				return nil
			}
			errs = append(errs, err)
			if ctx.Err() != nil {
				break
			}
		}
		return errors.Join(errs...)
	})
	return stop, func() int { return n }
}

// shared are the keys of a server that all have alike, by the file's name.
func (e *env) shared(c *cluster.Cluster) map[string]string {
	e.Helper()
	out := map[string]string{}
	for _, f := range pki.SharedFiles() {
		if f == "rotations.json" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(c.M.Host(cluster.Dirs().ServerPKI()), f))
		if err == nil {
			out[f] = string(raw)
		} else if !errors.Is(err, os.ErrNotExist) {
			e.Fatal(err)
		}
	}
	return out
}

// alike waits until all servers have the same keys.
func (e *env) alike(servers ...*cluster.Cluster) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		want := e.shared(servers[0])
		for _, c := range servers[1:] {
			got := e.shared(c)
			for _, f := range pki.SharedFiles() {
				if got[f] != want[f] {
					return fmt.Errorf("%s has another %s than %s", c.M.Name, f, servers[0].M.Name)
				}
			}
		}
		return nil
	}))
}

// insists runs a command until it succeeds, and fails at once where it says what it should not.
func (e *env) insists(by *cluster.Cluster, args ...string) string {
	e.Helper()
	var out string
	e.must(cluster.Eventually(e.within(3*patience), func(ctx context.Context) (err error) {
		if out, err = by.Umiak(ctx, args...); err != nil {
			err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return err
	}))
	return out
}

// refused asks that a command fails and says why.
func (e *env) refused(by *cluster.Cluster, why string, args ...string) {
	e.Helper()
	out, err := by.Umiak(e.within(2*patience), args...)
	if err == nil || !strings.Contains(err.Error(), why) {
		e.Errorf("%s: %v, want %q\n%s", strings.Join(args, " "), err, why, out)
	}
}

// reconnect makes clients of what the servers' kubeconfigs hold now.
func (e *env) reconnect(servers ...*cluster.Cluster) {
	e.Helper()
	for _, c := range servers {
		c.Kube = nil
		e.must(c.Connect())
	}
}

// startAgain restarts a server and waits until it serves and is a member.
func (e *env) startAgain(c *cluster.Cluster) {
	e.Helper()
	e.must(c.Stop(e.within(40 * time.Second)))
	e.must(c.Start())
	e.must(c.Ready(e.within(2 * patience)))
}

// rotatesAll replaces all authorities while writes go on, one server is killed in the middle, and each is started
// again.
func (e *env) rotatesAll(agents []*cluster.Cluster, servers ...*cluster.Cluster) {
	e.Helper()
	s1, s2, last := servers[0], servers[1], servers[len(servers)-1]
	p := e.probes()
	stopOld, oldWrote := e.writer(p, "writer-before", servers...)
	before := e.shared(s1)

	// One dies while it begins: whichever stage that is, it goes on when the server is back.
	done := make(chan error, 1)
	go func() {
		_, err := s1.Umiak(e.within(2*patience), "certificate", "rotate-ca")
		done <- err
	}()
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if now := e.shared(s1); now["server-ca.crt"] == before["server-ca.crt"] {
			return errors.New("nothing is announced yet")
		}
		return nil
	}))
	e.must(last.Kill())
	e.Logf("rotate-ca with %s killed in the middle: %v", last.M.Name, <-done)
	if len(servers) > 2 {
		e.refused(s2, last.M.Name, "certificate", "rotate-ca")
	}
	e.must(last.Start())
	e.must(last.Ready(e.within(2 * patience)))
	e.alike(servers...)
	if len(e.shared(s1)["server-ca-next.crt"]) > 0 {
		out := e.insists(s2, "certificate", "rotate-ca")
		if !strings.Contains(out, "one after the other") {
			e.Errorf("rotate-ca says:\n%s", out)
		}
	}
	e.alike(servers...)
	begun := e.shared(last)
	for _, f := range []string{"server-ca.key", "client-ca.key", "etcd-ca.key", "request-header-ca.key",
		"service-account.key"} {
		if begun[f] == before[f] {
			e.Errorf("%s is the old one", f)
		}
	}
	e.refused(s2, "one after the other: "+s1.M.Name, "certificate", "rotate-ca", "--finish", "--force")
	p.check("begun")

	e.reconnect(servers...) // with what trusts both
	stopNew, newWrote := e.writer(p, "writer-after", servers...)
	for _, c := range servers {
		e.startAgain(c)
	}
	p.check("started again")
	stopOld()

	// The agents have renewed by themselves; one that is away might not have.
	for _, a := range agents {
		e.must(a.Kill())
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := s2.Umiak(ctx, "certificate", "rotate-ca", "--finish", "client-ca")
			if err == nil {
				e.Fatalf("finished without %s:\n%s", a.M.Name, out)
			}
			if !strings.Contains(err.Error(), "would be cut off: "+a.M.Name) {
				return err
			}
			return nil
		}))
		e.must(a.Start("--server", e.url()))
	}
	// Pods may hold tokens of the old key.
	e.insists(s2, "certificate", "rotate-ca", "--finish", "server-ca", "client-ca", "request-header-ca", "etcd-ca")
	e.refused(s1, "an hour after", "certificate", "rotate-ca", "--finish")
	e.insists(s1, "certificate", "rotate-ca", "--finish", "--force")
	e.alike(servers...)
	after := e.shared(s1)
	for name, raw := range after {
		if strings.Contains(name, "-old") || strings.Contains(name, "-next") {
			e.Errorf("%s is left", name)
		}
		if strings.HasSuffix(name, ".crt") && raw == before[name] {
			e.Errorf("%s is the old one", name)
		}
	}
	e.reconnect(servers...)
	p.check("finished")
	stopNew()
	if oldWrote() == 0 || newWrote() == 0 {
		e.Errorf("%d and %d writes", oldWrote(), newWrote())
	}
	for _, a := range agents {
		e.nodeReady(a.M.Name, a)
		e.apply(fmt.Sprintf(onNode, "rotated-"+a.M.Name, a.M.Name))
		e.pod(named("rotated-"+a.M.Name), isReady)
		for _, c := range servers {
			by := e.through(c)
			e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
				out, err := by.exec(ctx, "rotated-"+a.M.Name, "", "hostname")
				if err != nil {
					err = fmt.Errorf("exec on %s through %s: %q, %w", a.M.Name, c.M.Name, out, err)
				}
				return err
			}))
		}
	}
}

// rotatesTokens: all servers have the new token within seconds, one that was off when it starts.
func (e *env) rotatesTokens(servers ...*cluster.Cluster) {
	e.Helper()
	by, last := servers[len(servers)-2], servers[len(servers)-1]
	file := func(c *cluster.Cluster, path string) string {
		raw, _ := os.ReadFile(c.M.Host(path))
		return strings.TrimSpace(string(raw))
	}
	has := func(c *cluster.Cluster, path, want string) {
		e.Helper()
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if got := file(c, path); got != want {
				return fmt.Errorf("%s on %s has not the new token (%d bytes)", path, c.M.Name, len(got))
			}
			return nil
		}))
	}
	e.must(last.Kill())
	agent := strings.TrimSpace(e.insists(by, "token", "rotate", "agent"))
	srv := strings.TrimSpace(e.insists(by, "token", "rotate", "server"))
	on := slices.Clone(servers[:len(servers)-1])
	for _, c := range on {
		has(c, cluster.Dirs().AgentToken(), agent)
		has(c, cluster.Dirs().ServerToken(), srv)
	}
	e.must(last.Start())
	e.must(last.Ready(e.within(2 * patience)))
	has(last, cluster.Dirs().AgentToken(), agent)
	has(last, cluster.Dirs().ServerToken(), srv)
}

// TestKeysOfThreeServers: authorities, the keys of Secrets and tokens of three servers with an agent are replaced while
// they run.
func TestKeysOfThreeServers(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "k1", LAN: l, Settings: map[string]string{"cluster-init": "true"}}).ready()
	s2, s3 := e.serverOn(l, "k2", nil), e.serverOn(l, "k3", nil)
	a1 := e.agentOn(l, "ka1", nil)
	e.joinServer(s2)
	e.agentReady(a1)
	e.joinServer(s3)
	servers := []*cluster.Cluster{e.Cluster, s2, s3}
	e.ctx = e.within(10 * patience)
	e.rotatesAll([]*cluster.Cluster{a1}, servers...)
	e.sub("then the keys of Secrets", func(e *env) {
		e.manySecrets(5)
		e.rotateKeys(s2)
		e.sameKeys(5, "key2", servers...)
	})
	e.sub("then the tokens", func(e *env) { e.rotatesTokens(servers...) })
	e.sub("files of one of them", func(e *env) {
		e.must(s3.Kill())
		e.refused(s3, "start all servers and run the command then", "certificate", "rotate-ca")
		e.must(s3.Start())
		e.must(s3.Ready(e.within(2 * patience)))
		e.alike(servers...)
	})
}
