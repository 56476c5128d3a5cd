package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// TestSettingsThatChange starts a server on a machine called localhost, changes its settings and its host name, and
// starts it again: it stays the same node, and what the settings gave it follows them.
func TestSettingsThatChange(t *testing.T) {
	t.Parallel()
	e := off(t, cluster.Options{Name: "localhost", Images: []string{}, Settings: map[string]string{
		"node-label": "room=attic,disk=ssd", "node-taint": "own=yes:PreferNoSchedule",
		"node-external-ip": "203.0.113.7",
		"kubelet-arg":      `["max-pods=77", "eviction-hard=memory.available<50Mi,nodefs.available<3%"]`,
		"disable":          "no-such-thing,metrics-server",
	}})
	out, err := e.Umiak(e.soon(), "check")
	if l := lineWith(out, []string{"node name", "localhost"}); !strings.HasPrefix(l, "WARN") {
		t.Errorf("check says of the host name: %q, %v", l, err)
	}
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	first := e.oneNode(func(n *corev1.Node) error {
		return errors.Join(labelled(n, "room", "attic"), labelled(n, "disk", "ssd"), tainted(n, "own", true),
			external(n, "203.0.113.7"), podsOf(n, "77"))
	})
	if !strings.HasPrefix(first.Name, "node-") {
		t.Errorf("a machine called localhost is node %q", first.Name)
	}
	if l := e.statusLine(first.Name, "localhost"); l == "" {
		t.Error("status does not say why the node is called so")
	}
	// Another client labels and taints it.
	patch := `{"metadata":{"labels":{"theirs":"yes"}},"spec":{"taints":[{"key":"own","value":"yes","effect":"PreferNoSchedule"},{"key":"theirs","effect":"PreferNoSchedule"}]}}`
	_, err = e.Kube.CoreV1().Nodes().Patch(e.soon(), first.Name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{})
	e.must(err)
	e.must(e.Stop(e.soon()))

	e.sh("hostname other")
	e.must(e.Configure(map[string]string{"node-label": "room=cellar", "token": "a-password-of-my-own"}))
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	again := e.oneNode(func(n *corev1.Node) error {
		return errors.Join(labelled(n, "room", "cellar"), labelled(n, "disk", ""), labelled(n, "theirs", "yes"),
			tainted(n, "own", false), tainted(n, "theirs", true), external(n), podsOf(n, "110"))
	})
	if again.UID != first.UID {
		t.Errorf("node %s became %s", first.Name, again.Name)
	}
	if l := e.statusLine("stays "+first.Name, `"other"`); l == "" {
		t.Error("status does not say that the name stayed")
	}
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		raw, err := os.ReadFile(e.hostPath(cluster.Dirs().ServerToken()))
		if err == nil && !strings.HasSuffix(strings.TrimSpace(string(raw)), ".server.a-password-of-my-own") {
			err = fmt.Errorf("server/token is %q", raw)
		}
		return err
	}))
	e.must(e.Stop(e.soon()))

	// What cannot be used is refused, by check as by a start, with one line and nothing done.
	for key, want := range map[string]string{
		"node-name":   `node-name: this machine has joined as node "` + first.Name + `"`,
		"kubelet-arg": "kubelet-arg: address cannot be set",
		"node-taint":  "node-taint: \"foo\": it has no effect",
	} {
		value := map[string]string{"node-name": "third", "kubelet-arg": "address=10.0.0.1", "node-taint": "foo"}[key]
		for _, command := range []string{"check", "server"} {
			out, err := e.Umiak(e.soon(), command, "--"+key, value)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out+err.Error(), want) {
				t.Errorf("%s --%s %s: %v\n%s", command, key, value, err, out)
			}
		}
	}
	e.sh("hostname " + strings.Repeat("a", 64) + "; rm -r /var/lib/umiak")
	for _, command := range []string{"check", "server"} {
		if _, err := e.Umiak(e.soon(), command); err == nil ||
			!strings.Contains(err.Error(), "64 characters, and 63 is the limit") {
			t.Errorf("%s with a host name of 64 letters: %v", command, err)
		}
	}
	e.sh("hostname short")
	e.Kube = nil // another cluster
	e.sh("cp " + e.example("admission.yaml") + " /etc/umiak/admission.yaml")
	e.must(e.Configure(map[string]string{
		"kube-apiserver-arg": `["admission-control-config-file=/etc/umiak/admission.yaml", "enable-admission-plugins=EventRateLimit"]`,
		"with-node-id":       "true", "disable-scheduler": "true", "nonroot-devices": "true", "enable-pprof": "true",
		"write-kubeconfig": "/etc/umiak/kubeconfig", "write-kubeconfig-mode": "0640", "write-kubeconfig-group": "daemon",
		"write-kubeconfig-name": "attic", "log": "/var/log/umiak/umiak.log", "vmodule": "kubelet*=2",
		"cluster-init": "true", "etcd-expose-metrics": "true", "etcd-arg": "quota-backend-bytes=3221225472",
		"secrets-encryption-provider": "aescbc", "advertise-port": "16443",
	}))
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	e.admissionConfigured()
	if n := e.oneNode(func(*corev1.Node) error { return nil }); !strings.HasPrefix(n.Name, "short-") || len(n.Name) != 14 {
		t.Errorf("with a shorter host name and with-node-id the node is %s", n.Name)
	}
	e.smallSettings()
}

// smallSettings checks what settings do that need the real program and no cluster of their own.
func (e *env) smallSettings() {
	e.Helper()
	if l := e.statusLine("kube-scheduler"); l != "" {
		e.Errorf("with disable-scheduler, status has %q", l)
	}
	for command, want := range map[string]string{
		"stat -c '%a %G' /etc/umiak/kubeconfig":                                         "640 daemon",
		"umiak kubectl --kubeconfig /etc/umiak/kubeconfig config current-context":       "attic",
		"umiak kubectl --kubeconfig /etc/umiak/kubeconfig get --raw /readyz":            "ok",
		"umiak kubectl get endpointslices kubernetes -o jsonpath='{.ports[*].port}'":    "16443",
		"umiak secrets-encrypt status":                                                  "aescbc key1",
		"stat -c %a /var/log/umiak/umiak.log":                                           "600",
		"cat /var/log/umiak/umiak.log":                                                  "http://umiak/debug/pprof/heap",
		"grep -m 1 level=DEBUG.*component=kubelet /var/log/umiak/umiak.log":             "kubelet",
		"curl -sS --unix-socket /run/umiak/pprof.sock http://umiak/debug/pprof/cmdline": "server",
		"curl -sS http://127.0.0.1:2381/metrics":                                        "etcd_server_quota_backend_bytes 3.221225472e+09",
	} {
		if out, err := e.M.Run(e.soon(), "sh", "-euc", command); err != nil || !strings.Contains(out, want) {
			e.Errorf("%s: %v, %.500s", command, err, out)
		}
	}
}

// admissionConfigured: pods have a minimum of security without a label, and one namespace does not flood the others
// with Events.
func (e *env) admissionConfigured() {
	e.Helper()
	pod := func(ns string) error {
		_, err := e.KubectlInput(e.soon(),
			strings.NewReader(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"hostNetwork":true,"containers":[{"name":"c","image":"x"}]}}`),
			"-n", ns, "create", "--dry-run=server", "-f", "-")
		return err
	}
	e.must(cluster.Eventually(e.soon(), func(context.Context) error { // its ServiceAccount comes a moment after the API
		if err := pod("default"); err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
			return fmt.Errorf("hostNetwork in a namespace without a level: %w",
				errors.Join(errors.New("not refused by Pod Security"), err))
		}
		return pod("kube-system")
	}))
	event := func(ns string) error {
		_, err := e.Kube.CoreV1().Events(ns).Create(e.soon(),
			&corev1.Event{ObjectMeta: metav1.ObjectMeta{GenerateName: "flood-"},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: "p"}, Reason: "Flood",
				Type: corev1.EventTypeNormal}, metav1.CreateOptions{})
		return err
	}
	var limited error
	for range 200 {
		if limited = event("default"); limited != nil {
			break
		}
	}
	if limited == nil || !strings.Contains(limited.Error(), "limit reached on type Namespace") {
		e.Errorf("200 Events at once: %v", limited)
	}
	e.must(event("kube-public"))
}

// oneNode waits until there is one Node, which is ready and as it should be.
func (e *env) oneNode(as func(*corev1.Node) error) *corev1.Node {
	e.Helper()
	var node corev1.Node
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		list, err := e.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("%d nodes", len(list.Items))
		}
		node = list.Items[0]
		if !slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			return errors.New("it is not ready")
		}
		return as(&node)
	}))
	return &node
}

// statusLine is a line of status with all the words.
func (e *env) statusLine(words ...string) string {
	out, _ := e.Umiak(e.soon(), "status")
	return lineWith(out, words)
}

func labelled(n *corev1.Node, key, want string) error {
	if got := n.Labels[key]; got != want {
		return fmt.Errorf("label %s is %q, want %q", key, got, want)
	}
	return nil
}

func tainted(n *corev1.Node, key string, want bool) error {
	if slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key }) != want {
		text, _ := json.Marshal(n.Spec.Taints)
		return fmt.Errorf("taint %s: want %v, there are %s", key, want, text)
	}
	return nil
}

func external(n *corev1.Node, want ...string) error {
	var got []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeExternalIP {
			got = append(got, a.Address)
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("external addresses %v, want %v", got, want)
	}
	return nil
}

func podsOf(n *corev1.Node, want string) error {
	if got := n.Status.Capacity.Pods().String(); got != want {
		return fmt.Errorf("%s pods, want %s", got, want)
	}
	return nil
}
