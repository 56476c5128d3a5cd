package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

// TestExamples uses every file of examples/ in the way that its README names: objects are applied and answer, a
// manifest is put into the folder of manifests, settings pass `umiak check`. A file that no case uses is an error.
func TestExamples(t *testing.T) {
	e := share(t)
	e.must(e.AddImages("examples.tar", images.Nginx))
	used := map[string]bool{"README.md": true, "admission.yaml": true} // TestSettingsThatChange uses the latter
	path := func(name string) string { used[name] = true; return e.example(name) }
	text := func(name string) string {
		raw, err := os.ReadFile(path(name))
		e.must(err)
		return string(raw)
	}

	e.apply(text("web.yaml"))
	e.client("stranger")
	e.client("client")
	e.kubectl("label", "pod", "client", "access=web")
	e.kubectl("rollout", "status", "deployment", "web", "--timeout=60s")
	e.gets("stranger", "http://web/")

	e.apply(text("load-balancer.yaml"))
	_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Services(e.ns), named("web-public"),
		func(s *corev1.Service) (bool, string) {
			c := meta.FindStatusCondition(s.Status.Conditions, "umiak.io/LoadBalancer")
			return c != nil && c.Reason == "Served", fmt.Sprintf("%+v", c)
		})
	e.must(err)
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		out, err := e.fromLAN(e.M.IP + ":8080")
		if err == nil && !strings.Contains(out, "200 OK") {
			err = fmt.Errorf("the load balancer's address answers %q", out)
		}
		return err
	}))

	e.apply(text("network-policy.yaml"))
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if out, err := e.in("stranger", "get", "http://web/"); err == nil {
			return fmt.Errorf("a pod without the label gets %q in spite of the policy", out)
		}
		return nil
	}))
	e.gets("client", "http://web/")

	// These are the whole cluster's, which other tests use: the API server checks them and stores nothing.
	for _, name := range []string{"dns.yaml", "upgrade.yaml"} {
		if out := e.kubectl("apply", "-n", "kube-system", "--dry-run=server", "-f", path(name)); !strings.Contains(out,
			"dry run") {
			t.Errorf("%s: %s", name, out)
		}
	}

	manifest := e.hostPath(cluster.Dirs().Data, "server", "manifests", "team.yaml")
	e.must(os.WriteFile(manifest, []byte(text("team.yaml")), 0o600))
	t.Cleanup(func() { _ = os.Remove(manifest) })
	_, err = cluster.Until(e.soon(), e.Kube.CoreV1().ResourceQuotas("team-a"), named("quota"),
		func(q *corev1.ResourceQuota) (bool, string) {
			return q.Spec.Hard.Pods().Value() == 50, q.Spec.Hard.Pods().String()
		})
	e.must(err)

	token := e.hostPath("/etc/umiak/token")
	e.must(os.MkdirAll(filepath.Dir(token), 0o700))
	e.must(os.WriteFile(token, []byte("correct-horse-battery\n"), 0o600))
	t.Cleanup(func() { _ = os.Remove(token) })
	for _, args := range [][]string{
		{"umiak", "check", "--config", path("server.yaml")},
		{"umiak-agent", "check", "--config", path("agent.yaml")},
		{"umiak", "check", "--private-registry", path("registries.yaml")},
	} {
		// The shared node holds the ports, so check ends with 1; it prints its table only after the settings are
		// accepted.
		out, err := e.M.Run(e.soon(), args[0], append(args[1:], "--data-dir", "/tmp/umiak-examples")...)
		if lineWith(out, []string{"OK", "kernel"}) == "" ||
			lineWith(out, []string{"MISSING", "registry settings"}) != "" {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}

	all, err := os.ReadDir(e.example(""))
	e.must(err)
	for _, f := range all {
		if !used[f.Name()] {
			t.Errorf("examples/%s is in no test", f.Name())
		}
		if !strings.Contains(text("README.md"), "("+f.Name()+")") && f.Name() != "README.md" {
			t.Errorf("examples/%s is not in examples/README.md", f.Name())
		}
	}
}

// example is the path of a file of examples/, which machines see as well.
func (e *env) example(name string) string {
	e.Helper()
	root, err := cluster.Checkout()
	e.must(err)
	return filepath.Join(root, "examples", name)
}

// gets waits until a pod gets an answer from an address.
func (e *env) gets(pod, url string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		out, err := e.in(pod, "get", url)
		if err != nil {
			return fmt.Errorf("%s gets %q from %s: %w", pod, out, url, err)
		}
		return nil
	}))
}
