package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// broken is an agent's machine under the control of an attacker, who uses its keys.
type broken struct {
	*env
	node *cluster.Cluster
	api  string // HOST:PORT
}

func (b *broken) cert(id string) tls.Certificate {
	b.Helper()
	pki := cluster.Dirs().AgentPKI() + "/" + id
	c, err := tls.LoadX509KeyPair(b.node.M.Host(pki+".crt"), b.node.M.Host(pki+".key"))
	b.must(err)
	return c
}

// ask makes a fresh connection with one of the node's certificates. The code is 0 where the handshake fails.
func (b *broken) ask(to, id, method, path, kind string, body []byte) (int, string) {
	b.Helper()
	tr := &http.Transport{DialContext: b.node.M.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true,
			Certificates: []tls.Certificate{b.cert(id)}}} //nolint:gosec // the attacker does not care
	r, err := http.NewRequestWithContext(b.soon(), method, "https://"+to+path, bytes.NewReader(body))
	b.must(err)
	r.Header.Set("Content-Type", kind)
	if path == tunnelwire.Path {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", tunnelwire.Protocol)
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // what is cut off is not needed
	return resp.StatusCode, string(raw)
}

// claim patches the status of the node's own Node.
func (b *broken) claim(addrs ...string) (int, string) {
	b.Helper()
	var list []corev1.NodeAddress
	for _, a := range addrs {
		list = append(list, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	raw, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": list}})
	b.must(err)
	return b.ask(b.api, "kubelet-client", http.MethodPatch, "/api/v1/nodes/"+b.node.M.Name+"/status",
		"application/merge-patch+json", raw)
}

// renew asks for certificates with addresses.
func (b *broken) renew(path string, addrs ...string) (int, string) {
	b.Helper()
	password, err := os.ReadFile(b.node.M.Host(cluster.Dirs().NodePassword()))
	b.must(err)
	key, ok := b.cert("agent-client").PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		b.Fatal("the agent's key is of another kind")
	}
	name := b.node.M.Name
	i := &identity{key: key, req: joinwire.NodeRequest{Name: name, IPs: addrs,
		Password: strings.TrimSpace(string(password))}}
	var ips []net.IP
	for _, a := range addrs {
		ips = append(ips, net.ParseIP(a))
	}
	i.req.Kubelet = i.csr(b.T, "system:node:"+name, "system:nodes", nil, nil)
	i.req.Agent = i.csr(b.T, "umiak:agent:"+name, "umiak:agents", nil, nil)
	i.req.Serving = i.csr(b.T, "system:node:"+name, "system:nodes", []string{name}, ips)
	raw, err := json.Marshal(i.req)
	b.must(err)
	return b.ask(b.api, "agent-client", http.MethodPost, path, "application/json", raw)
}

// balancedAt is a Service of which no program of the LAN has the port.
const balancedAt = `
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {type: LoadBalancer, selector: {app: %s}, ports: [{port: 7000, targetPort: 8080}]}
`

// liar plays a node that says it has others' addresses (issue 13, H4): victim's pod is on another node.
func (e *env) liar(node, victim *cluster.Cluster, pod *corev1.Pod) {
	b := &broken{e, node, e.M.IP + ":6443"}
	own, host := node.M.IP, e.M.LAN().Gateway() // which is a machine of the LAN and no node
	svc := e.service("svc-" + pod.Name).Spec.ClusterIP
	for what, a := range map[string]string{
		"another node's": victim.M.IP, "a Service's": svc, "a pod's": pod.Status.PodIP, "a server's": e.M.IP,
		"one that it has not registered": host,
	} {
		if code, body := b.claim(own, a); code != http.StatusForbidden {
			e.Errorf("a node reports the address %s, %s: %d %s", a, what, code, body)
		}
		if what == "one that it has not registered" {
			continue
		}
		if code, body := b.renew(joinwire.RenewPath, own, a); code == http.StatusOK {
			e.Errorf("a node gets a certificate for %s, %s: %s", a, what, body)
		}
	}
	if code, body := b.claim(own); code != http.StatusOK {
		e.Errorf("a node reports its own address: %d %s", code, body)
	}
	if out, err := e.in(pod.Name, "get", "http://127.0.0.1:8080/"); err != nil ||
		!strings.HasPrefix(out, pod.Name+" ") {
		e.Errorf("exec in the other node's pod: %q, %v", out, err)
	}
	e.logs(pod.Name, "")

	// It registers the address of a machine that is no node: no other node has it, but nothing confirms it either.
	if code, body := b.renew(joinwire.RenewPath, own, host); code != http.StatusOK {
		e.Fatalf("a node registers an address that nobody has: %d %s", code, body)
	}
	e.apply(fmt.Sprintf(balancedAt, pod.Name))
	// its record is known a moment later; its own kubelet puts it back
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if code, body := b.claim(own, host); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	}))
	_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Services(e.ns), named("balanced"),
		func(s *corev1.Service) (bool, string) {
			for _, in := range s.Status.LoadBalancer.Ingress {
				if in.IP == host {
					e.Errorf("the address of a machine that is no node is offered: %+v", s.Status)
				}
			}
			c := meta.FindStatusCondition(s.Status.Conditions, "umiak.io/LoadBalancer")
			return c != nil && len(s.Status.LoadBalancer.Ingress) == 3 &&
				strings.Contains(c.Message, "annotate node "+node.M.Name), fmt.Sprintf("%+v", s.Status)
		})
	e.must(err)
	var l net.Listener
	e.must(e.M.LAN().Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(e.ctx, "tcp", host+":7000")
		return err
	}))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "the LAN's")
			_ = c.Close()
		}
	}()
	for _, from := range []*machine.Machine{e.M, victim.M} {
		c, err := from.Dial(e.soon(), "tcp", host+":7000")
		e.must(err)
		if out, err := io.ReadAll(c); string(out) != "the LAN's" {
			e.Errorf("%s reaches %q, %v", from.Name, out, err)
		}
		_ = c.Close()
	}
	if out, err := b.ask(b.api, "kubelet-client", http.MethodPatch, "/api/v1/nodes/"+node.M.Name,
		"application/merge-patch+json",
		[]byte(fmt.Sprintf(`{"metadata":{"annotations":{"umiak.io/confirmed-addresses":%q}}}`,
			host))); out != http.StatusForbidden {
		e.Errorf("a node confirms its own addresses: %d %s", out, err)
	}
	e.kubectl("delete", "service", "balanced")
}

// shutOut deletes the Node of an agent that runs, and sees that nothing of it counts any more (issue 13, M1).
func (e *env) shutOut(node, other *cluster.Cluster) {
	b := &broken{e, node, e.M.IP + ":6443"}
	name := node.M.Name
	tries := map[string]func() (int, string){
		"the kubelet's certificate": func() (int, string) {
			return b.ask(b.api, "kubelet-client", http.MethodGet, "/api/v1/services", "", nil)
		},
		"the agent's certificate": func() (int, string) {
			return b.ask(b.api, "agent-client", http.MethodGet, "/api/v1/services", "", nil)
		},
		"image sharing": func() (int, string) {
			return b.ask(other.M.IP+":5001", "agent-client", http.MethodGet, "/v2/", "", nil)
		},
		"a tunnel": func() (int, string) {
			return b.ask(b.api, "agent-client", http.MethodGet, tunnelwire.Path, "",
				nil)
		},
		"a check": func() (int, string) { return b.renew(joinwire.CheckPath, node.M.IP) },
		"renewal": func() (int, string) { return b.renew(joinwire.RenewPath, node.M.IP) },
	}
	for what, try := range tries {
		if what == "a tunnel" {
			continue // it has its own
		}
		if code, body := try(); code != http.StatusOK {
			e.Errorf("%s before: %d %s", what, code, body)
		}
	}
	watch := make(chan string, 1)
	go func() {
		_, body := b.ask(b.api, "agent-client", http.MethodGet,
			"/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Dnone", "", nil)
		watch <- body
	}()
	e.kubectl("delete", "node", name)
	for what, try := range tries {
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if code, body := try(); code != http.StatusUnauthorized && code != http.StatusForbidden &&
				(code != 0 || what != "image sharing" || !strings.Contains(body, "tls:")) {
				return fmt.Errorf("%s of a deleted node: %d %s", what, code, body)
			}
			return nil
		}))
	}
	select {
	case <-watch:
	case <-e.soon().Done():
		e.Error("a watch of the deleted node goes on")
	}
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		raw, err := os.ReadFile(e.LogFile())
		if err == nil && lineWith(string(raw), []string{"tunnel closed", "node=" + name}) == "" {
			err = errors.New("its tunnel is open")
		}
		return err
	}))
	if _, err := e.Kube.CoreV1().Nodes().Get(e.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		e.Errorf("the deleted node: %v", err)
	}
}

// swap gives each of two agents the address of the other: pod is on the second.
func (e *env) swap(one, two *cluster.Cluster, pod string) {
	gateway := e.M.LAN().Gateway()
	for _, c := range []*cluster.Cluster{one, two} {
		_, err := c.M.Run(e.soon(), "ip", "address", "del", c.M.IP+"/24", "dev", "eth0")
		e.must(err)
	}
	one.M.IP, two.M.IP = two.M.IP, one.M.IP
	for _, c := range []*cluster.Cluster{one, two} {
		_, err := c.M.Run(e.soon(), "sh", "-c", "ip address add "+c.M.IP+
			"/24 dev eth0 && ip route replace default via "+gateway)
		e.must(err)
	}
	for _, c := range []*cluster.Cluster{one, two} {
		_, err := cluster.Until(e.within(2*patience), e.Kube.CoreV1().Nodes(), named(c.M.Name),
			func(n *corev1.Node) (bool, string) {
				for _, a := range n.Status.Addresses {
					if a.Type == corev1.NodeInternalIP {
						return a.Address == c.M.IP, fmt.Sprintf("%s, not %s", a.Address, c.M.IP)
					}
				}
				return false, "no address"
			})
		if err != nil {
			e.Fatalf("the address of %s: %v\n%s", c.M.Name, err, c.LogTail(20))
		}
		e.nodeReady(c.M.Name, c)
	}
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		out, err := e.in(pod, "get", "http://127.0.0.1:8080/")
		if err == nil && !strings.HasPrefix(out, pod+" ") {
			err = fmt.Errorf("got %q", out)
		}
		return err
	}))
}
