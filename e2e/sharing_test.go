package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
)

const pulled = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %[3]q, imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]
`

// digests are those of the images that a machine has, by name.
func (e *env) digests(c *cluster.Cluster) map[string]string {
	e.Helper()
	raw, err := c.Umiak(e.soon(), "images", "list", "-o", "json")
	e.must(err)
	var list []struct{ Name, Digest string }
	e.must(json.Unmarshal([]byte(raw), &list))
	out := map[string]string{}
	for _, i := range list {
		out[i.Name] = i.Digest
	}
	return out
}

// pull has a machine's containerd pull an image, as the kubelet would.
func pull(ctx context.Context, c *cluster.Cluster, image string) error {
	_, err := c.Umiak(ctx, "ctr", "-n", "k8s.io", "images", "pull", image)
	return err
}

// TestImageSharing: of a server and two agents without a registry, only the server is given images.
func TestImageSharing(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "srv", LAN: l}).ready()
	var agents []*cluster.Cluster
	for _, name := range []string{"one", "two"} {
		a := off(t, cluster.Options{Name: name, LAN: l, Run: []string{"umiak-agent"}, Images: []string{}}).Cluster
		e.must(a.Start(strings.Fields(e.token("--print-join-command"))[1:]...))
		agents = append(agents, a)
	}
	one, two := agents[0], agents[1]
	e.nodeReady("one", one)
	e.nodeReady("two", two)
	if role := e.kubectl("get", "nodes", "--no-headers"); strings.Count(role, "control-plane") != 1 {
		t.Errorf("nodes and their roles:\n%s", role)
	}
	has := e.digests(e.Cluster)
	first, second := has[images.App1], has[images.App2]
	if first == "" || second == "" {
		t.Fatalf("the server has %v", has)
	}

	// What is cut off stays so until the end of a part.
	cut := func(e *env, c *cluster.Cluster, rule string) {
		e.Helper()
		_, err := c.M.Run(e.soon(), "nft",
			"add table inet cut; add chain inet cut in { type filter hook input priority -300; }; add rule inet cut in "+rule)
		e.must(err)
		e.Cleanup(func() {
			if _, err := c.M.Run(context.Background(), "nft", "delete table inet cut"); err != nil {
				e.Error(err)
			}
		})
	}
	e.sub("by tag on both", func(e *env) {
		for _, a := range agents {
			e.apply(fmt.Sprintf(pulled, "tag"+a.M.Name, a.M.Name, images.App1))
		}
		for _, a := range agents {
			e.pod(named("tag"+a.M.Name), isReady)
		}
	})
	e.sub("by digest, the second time from an agent", func(e *env) {
		image := "registry.test/app@" + second
		e.apply(fmt.Sprintf(pulled, "dig1", "one", image))
		e.pod(named("dig1"), isReady)
		cut(e, e.Cluster, "tcp dport 5001 drop")
		e.apply(fmt.Sprintf(pulled, "dig2", "two", image))
		e.pod(named("dig2"), isReady)
		out, err := one.Umiak(e.soon(), "status")
		if err != nil || !strings.Contains(out, "Image sharing") || !strings.Contains(out, "2 nodes; gave ") ||
			strings.Contains(out, "gave 0 blobs") {
			e.Errorf("status of one: %v\n%s", err, out)
		}
	})
	e.sub("a tag that only an agent has", func(e *env) {
		const only = "registry.test/only"
		for _, args := range [][]string{{"tag", images.App1, only + ":1"}, {"tag", images.App1, only + "@" + first}} {
			_, err := one.Umiak(e.soon(), append([]string{"ctr", "-n", "k8s.io", "images"}, args...)...)
			e.must(err)
		}
		if err := pull(e.soon(), two, only+":1"); err == nil {
			e.Error("an agent says what a tag is")
		}
		e.must(pull(e.soon(), two, only+"@"+first))
	})
	e.sub("strangers", func(e *env) {
		ask := func(to *machine.Machine, cert ...tls.Certificate) error {
			cfg := &tls.Config{InsecureSkipVerify: true,
				Certificates: cert} //nolint:gosec // a stranger does not know the CA
			tr := &http.Transport{DialContext: e.M.Dial, TLSClientConfig: cfg, DisableKeepAlives: true}
			req, err := http.NewRequestWithContext(e.soon(), http.MethodGet, "https://"+to.IP+":5001/v2/", nil)
			e.must(err)
			resp, err := tr.RoundTrip(req)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				e.Errorf("%s answers %s", to.Name, resp.Status)
			}
			return resp.Body.Close()
		}
		pki := cluster.Dirs().AgentPKI() + "/"
		agent, err := tls.LoadX509KeyPair(two.M.Host(pki+"agent-client.crt"), two.M.Host(pki+"agent-client.key"))
		e.must(err)
		admin, err := tls.X509KeyPair(e.REST.CertData, e.REST.KeyData)
		e.must(err)
		for _, to := range []*machine.Machine{e.M, one.M} {
			e.must(ask(to, agent))
			for what, cert := range map[string][]tls.Certificate{"nobody": nil, "an administrator": {admin}} {
				if err := ask(to, cert...); err == nil || !strings.Contains(err.Error(), "tls:") {
					e.Errorf("%s at %s: %v", what, to.Name, err)
				}
			}
		}
		// A pod has no certificate at all.
		out, err := e.exec(e.soon(), "tagone", "", "/bin/sh", "-c", "printf 'GET /v2/ HTTP/1.0\r\n\r\n' | nc "+one.M.IP+
			" 5001")
		if !strings.Contains(out, "400 Bad Request") {
			e.Errorf("a pod: %q, %v", out, err)
		}
	})
	e.sub("the kubelet's port is for nodes and pods", func(e *env) {
		by := func(do func(func() error) error, to *machine.Machine) error {
			return do(func() error {
				c, err := net.DialTimeout("tcp", to.IP+":10250", patience)
				if err == nil {
					err = c.Close()
				}
				return err
			})
		}
		for _, to := range []*machine.Machine{e.M, one.M} {
			// A host of the LAN; the rules come when the node has seen all others.
			e.must(cluster.Eventually(e.soon(), func(context.Context) error {
				if err := by(l.Do, to); err == nil {
					return fmt.Errorf("a host of the LAN connects to %s:10250", to.IP)
				}
				return nil
			}))
			e.must(by(two.M.Do, to))
			for _, pod := range []string{"tagone", "tagtwo"} { // as Prometheus would
				out, err := e.exec(e.soon(), pod, "", "/bin/sh", "-c", "printf 'GET /metrics HTTP/1.0\r\n\r\n' | nc "+
					to.IP+" 10250")
				if !strings.Contains(out, "HTTP request to an HTTPS server") {
					e.Errorf("pod %s at %s:10250: %q, %v", pod, to.IP, out, err)
				}
			}
			_ = e.logs("tagone", "c")
		}
		out, err := one.Umiak(e.soon(), "status")
		if err != nil || !strings.Contains(out, "kubelet-port-from") {
			e.Errorf("status of one does not say that somebody was refused: %v\n%s", err, out)
		}
	})
	e.sub("an agent does not make itself a server", func(e *env) {
		for _, who := range []string{"kubelet-client", "agent-client"} {
			cfg := rest.AnonymousClientConfig(e.REST)
			file := two.M.Host(cluster.Dirs().AgentPKI() + "/" + who)
			cfg.Dial, cfg.CertFile, cfg.KeyFile = e.M.Dial, file+".crt", file+".key"
			k, err := kubernetes.NewForConfig(cfg)
			e.must(err)
			_, err = k.CoreV1().Nodes().Patch(e.soon(), "two", types.MergePatchType,
				[]byte(`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`), metav1.PatchOptions{})
			if !apierrors.IsForbidden(err) {
				e.Errorf("%s: %v", who, err)
			}
		}
	})
	e.sub("without the server", func(e *env) {
		e.must(e.Stop(e.soon()))
		e.must(pull(e.soon(), two, "registry.test/only@"+first))
		if err := pull(e.soon(), two, images.App2); err == nil {
			e.Error("a tag without a server")
		}
		e.must(e.Start())
		e.must(e.Cluster.Ready(e.within(2 * patience)))
	})
	e.sub("turned off", func(e *env) {
		e.must(two.Stop(e.soon()))
		e.must(two.Configure(map[string]string{"server": e.url(), "image-sharing": "false"}))
		e.must(two.Start())
		e.nodeReady("two", two)
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, _ := two.Umiak(ctx, "status")
			if !strings.Contains(out, "image-sharing: false") {
				return errors.New(out)
			}
			return nil
		}))
		if c, err := e.M.Dial(e.soon(), "tcp", two.M.IP+":5001"); err == nil {
			_ = c.Close()
			e.Error("the port is open")
		}
		if err := pull(e.soon(), two, images.App2); err == nil {
			e.Error("images come from neighbours")
		}
	})
}
