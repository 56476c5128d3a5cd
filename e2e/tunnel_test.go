package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// closedDoor is a node that takes no connection and no packet of the overlay, as behind a router.
var closedDoor = door("")

// door is a node that takes nothing from outside but what the rule accepts.
func door(rule string) string {
	return `table inet door {
	chain in { type filter hook input priority 0; policy drop
		iifname { "lo", "cni0" } accept
		ct state established,related accept
		` + rule + `
	}
}`
}

// cutCable is a network that is gone without a word.
const cutCable = `table inet cable {
	chain in { type filter hook input priority -200; policy accept; iifname "eth0" drop; }
	chain out { type filter hook output priority -200; policy accept; oifname "eth0" drop; }
}`

// farNode joins a machine with a closed door to the server's cluster.
func (e *env) farNode(l *machine.LAN, name string) *env {
	e.Helper()
	far := off(e.T, cluster.Options{Name: name, LAN: l, Run: []string{"umiak-agent"}})
	// Also where its kubelet has another port than others, and listens at one address only.
	e.must(far.Configure(map[string]string{"kubelet-port": "10260", "bind-address": far.M.IP}))
	_, err := far.M.Run(e.soon(), "nft", closedDoor)
	e.must(err)
	e.agentReady(far.Cluster)
	return far
}

// TestTunnel: the API server reaches kubelet and pods of a node that takes no connections, and does so again
// a few seconds after the network was gone.
func TestTunnel(t *testing.T) {
	t.Parallel()
	l, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := own(t, cluster.Options{Name: "tunnel1", LAN: l, Settings: map[string]string{"disable-agent": "true"}})
	e.must(e.APIReady(e.within(2 * patience)))
	e.namespace()
	far := e.farNode(l, "far1")
	crt := e.farPods("far1")

	e.sub("the door is closed", func(e *env) {
		short := e.within(2 * time.Second)
		if c, err := e.M.Dial(short, "tcp", far.M.IP+":10250"); err == nil {
			_ = c.Close()
			e.Error("the kubelet's port is open")
		}
	})
	e.sub("exec and logs", func(e *env) {
		if out, err := e.in("web", "get", "http://127.0.0.1:8080/"); err != nil || out == "" {
			e.Errorf("exec: %q, %v", out, err)
		}
		_ = e.logs("web", "c")
	})
	e.sub("copying into a pod", func(e *env) { e.copies("web", 32<<20) })
	e.sub("port-forward", func(e *env) {
		addr, err := e.forward(e.ctx, "web", 8080)
		e.must(err)
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + addr + "/")
		e.must(err)
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			e.Errorf("%s %s %v", resp.Status, body, err)
		}
	})
	e.sub("proxies of the node, the pod and the Service", func(e *env) { e.proxies("far1") })
	e.sub("a webhook in a pod", func(e *env) { e.refusedByHook(crt) })
	e.sub("status", func(e *env) {
		if out, err := e.Umiak(e.soon(), "status"); err != nil || !strings.Contains(out, "Tunnels of nodes") {
			e.Errorf("on the server: %v\n%s", err, out)
		}
		if out, err := far.Umiak(e.soon(), "status"); err != nil || !strings.Contains(out, "Tunnels to servers") {
			e.Errorf("on the node: %v\n%s", err, out)
		}
	})
	e.sub("the network is gone for 10 seconds", func(e *env) {
		_, err := far.M.Run(e.soon(), "nft", cutCable)
		e.must(err)
		select { // the outage is what is tested: it has no end to wait for
		case <-time.After(10 * time.Second):
		case <-e.ctx.Done():
			e.Fatal(context.Cause(e.ctx))
		}
		_, err = far.M.Run(e.soon(), "nft", "delete", "table", "inet", "cable")
		e.must(err)
		back := time.Now()
		e.must(cluster.Eventually(e.within(15*time.Second), func(ctx context.Context) error {
			_, err := e.exec(ctx, "web", "", "/bin/app", "get", "http://127.0.0.1:8080/")
			return err
		}))
		e.Logf("exec works %v after the network is back", time.Since(back).Round(10*time.Millisecond))
	})
	e.sub("the server was away", func(e *env) {
		e.must(e.Kill())
		e.must(e.Start())
		e.must(e.APIReady(e.within(2 * patience)))
		back := time.Now()
		e.must(cluster.Eventually(e.within(15*time.Second), func(ctx context.Context) error {
			_, err := e.exec(ctx, "web", "", "/bin/app", "get", "http://127.0.0.1:8080/")
			return err
		}))
		e.Logf("exec works %v after the server is back", time.Since(back).Round(10*time.Millisecond))
	})
}

// copies sends size random bytes into a pod, as kubectl cp does, and compares what arrives.
func (e *env) copies(pod string, size int) {
	e.Helper()
	data := make([]byte, size)
	_, _ = rand.New(rand.NewSource(1)).Read(data)
	began := time.Now()
	out, err := e.execInput(e.soon(), bytes.NewReader(data), pod, "", "/bin/app", "sum")
	e.must(err)
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); strings.TrimSpace(out) != want {
		e.Errorf("arrived with the sum %q, want %s", out, want)
	}
	e.Logf("%d MiB in %v", size>>20, time.Since(began).Round(time.Millisecond))
}

// TestTunnelBesideTheOverlay: a server with a node of its own tries the overlay first, which does not lead to
// the pods of a node with a closed door.
func TestTunnelBesideTheOverlay(t *testing.T) {
	t.Parallel()
	l, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := own(t, cluster.Options{Name: "tunnel2", LAN: l,
		Settings: map[string]string{"kube-apiserver-arg": "[enable-aggregator-routing=true]"}}).ready()
	e.farNode(l, "far2")
	crt := e.farPods("far2")
	if out, err := e.in("web", "get", "http://127.0.0.1:8080/"); err != nil || out == "" {
		e.Errorf("exec: %q, %v", out, err)
	}
	e.proxies("far2")
	e.refusedByHook(crt)
}

// farPods are a webhook and a web server on a node, and Services for them. It returns the webhook's
// certificate.
func (e *env) farPods(node string) []byte {
	e.Helper()
	crt, key := certificate(e.T, "hook."+e.ns+".svc")
	e.apply(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: tls}
data: {tls.crt: %[1]s, tls.key: %[2]s}
---
apiVersion: v1
kind: Pod
metadata: {name: hook, labels: {app: hook}}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 0
  volumes: [{name: tls, secret: {secretName: tls}}]
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never, args: [webhook, /tls], volumeMounts: [{name: tls, mountPath: /tls}], readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`, b64(crt), b64(key), node))
	e.pod(named("hook"), isReady)
	e.pod(named("web"), isReady)
	return crt
}

// proxies asks for something by each of the API server's.
func (e *env) proxies(node string) {
	e.Helper()
	for _, path := range []string{"/api/v1/nodes/" + node + "/proxy/metrics", "/api/v1/namespaces/" + e.ns +
		"/pods/http:web:8080/proxy/", "/api/v1/namespaces/" + e.ns + "/services/http:web:80/proxy/"} {
		if raw, err := e.Kube.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(e.soon()); err != nil || len(raw) == 0 {
			e.Errorf("%s: %v", path, err)
		}
	}
}

// webhook has the API server ask the Service hook about ConfigMaps of the test's namespace. What it returns is the
// name of the configuration, which has no namespace.
func (e *env) webhook(kind string, crt []byte) string {
	e.Helper()
	name := "hook-" + e.ns
	e.apply(fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: %sWebhookConfiguration
metadata: {name: %s}
webhooks:
- name: hook.example.test
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 5
  clientConfig: {caBundle: %s, service: {name: hook, namespace: %s}}
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
`, kind, name, b64(crt), e.ns, e.ns))
	return name
}

// refusedByHook has the API server ask the webhook.
func (e *env) refusedByHook(crt []byte) {
	e.Helper()
	e.webhook("Validating", crt)
	i := 0
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error { // until the configuration is in force
		i++
		_, err := e.Kube.CoreV1().ConfigMaps(e.ns).Create(ctx,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("forbidden-", i)}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "the webhook says no") {
			return fmt.Errorf("not the webhook's refusal: %w", errors.Join(err, errors.New("it says no")))
		}
		return nil
	}))
}
