package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
)

// lan gives a test a network for several machines.
func lan(t *testing.T) *machine.LAN {
	t.Helper()
	l, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close LAN: %v", err)
		}
	})
	return l
}

// agentOn makes a machine on the server's network that runs umiak-agent.
func (e *env) agentOn(l *machine.LAN, name string, settings map[string]string) *cluster.Cluster {
	e.Helper()
	return off(e.T, cluster.Options{Name: name, LAN: l, Run: []string{"umiak-agent"}, Settings: settings}).Cluster
}

func (e *env) url() string { return "https://" + e.M.IP + ":6443" }

// token makes a token on the server.
func (e *env) token(flags ...string) string {
	e.Helper()
	out, err := e.Umiak(e.soon(), append([]string{"token", "create"}, flags...)...)
	e.must(err)
	return strings.TrimSpace(out)
}

// nodeReady waits for a node's condition.
func (e *env) nodeReady(name string, a *cluster.Cluster) {
	e.Helper()
	_, err := cluster.Until(e.within(2*patience), e.Kube.CoreV1().Nodes(), named(name),
		func(n *corev1.Node) (bool, string) {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady {
					return c.Status == corev1.ConditionTrue, "node " + string(c.Status) + ": " + c.Message
				}
			}
			return false, "no condition"
		})
	if err != nil {
		e.Fatalf("node %s: %v\n%s", name, err, a.LogTail(20))
	}
}

const onNode = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "registry.test/app:1", imagePullPolicy: Never, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: svc-%[1]s}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
`

// TestJoin: a server and two agents become a cluster by one line each, and an agent goes on without its
// server, over its own restart too.
func TestJoin(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "srv", LAN: l}).ready()
	one, two := e.agentOn(l, "ag1", nil), e.agentOn(l, "ag2", nil)

	agentToken, err := os.ReadFile(e.hostPath(cluster.Dirs().AgentToken()))
	e.must(err)
	e.must(one.Start("--server", e.url(), "--token", strings.TrimSpace(string(agentToken))))
	line := strings.Fields(e.token("--print-join-command", "--single-use"))
	if len(line) != 5 || line[0] != "umiak-agent" {
		t.Fatalf("the line to join is %q", line)
	}
	e.must(two.Start(line[1:]...))
	e.nodeReady("ag1", one)
	e.nodeReady("ag2", two)

	e.must(one.ImagesReady(e.soon()))
	e.must(two.ImagesReady(e.soon()))
	for pod, node := range map[string]string{"s": "srv", "a": "ag1", "b": "ag2"} {
		e.apply(fmt.Sprintf(onNode, pod, node))
	}
	ips := map[string]string{}
	for _, p := range []string{"s", "a", "b"} {
		ips[p] = e.pod(named(p), isReady).Status.PodIP
	}
	for _, from := range []string{"s", "a", "b"} {
		for _, to := range []string{"s", "a", "b"} {
			e.must(cluster.Eventually(e.soon(), func(context.Context) error {
				// By name, through the Service, and to the pod itself.
				for _, url := range []string{"http://svc-" + to + "/", "http://" + ips[to] + ":8080/"} {
					if out, err := e.in(from, "get", url); err != nil {
						return fmt.Errorf("%s gets %s: %q, %w", from, url, out, err)
					}
				}
				return nil
			}))
		}
	}
	status, err := two.Umiak(e.soon(), "status")
	if err != nil || !strings.Contains(status, "joined") || !strings.Contains(status, "renewed by itself") ||
		!strings.Contains(status, e.M.IP+":6443  answers") {
		t.Errorf("status: %v\n%s", err, status)
	}

	e.sub("a node that lies", func(e *env) { e.liar(one, two, e.pod(named("b"), isReady)) })
	e.sub("with the credentials of an agent", func(e *env) { e.attacked(one, two) })
	e.sub("a Node with 100,000 names of images", func(e *env) { e.longList(one, e.Cluster, one, two) })
	e.sub("without its server", func(e *env) {
		before := e.pod(named("b"), isReady)
		svc := e.service("svc-b").Spec.ClusterIP
		answers := func() {
			e.Helper()
			var c net.Conn
			e.must(cluster.Eventually(e.soon(), func(ctx context.Context) (err error) {
				c, err = two.M.Dial(ctx, "tcp", svc+":80")
				return err
			}))
			_ = c.Close()
		}
		e.must(e.Stop(e.soon()))
		answers()
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return two.M.Dial(ctx, "udp", "10.43.0.10:53")
			}}
			got, err := r.LookupHost(ctx, "svc-b."+e.ns+".svc.cluster.local.")
			if err == nil && (len(got) != 1 || got[0] != svc) {
				err = fmt.Errorf("got %q, want %s", got, svc)
			}
			return err
		}))
		e.must(two.Stop(e.soon()))
		answers()
		e.must(two.Start(line[1:]...)) // its token is used up, and it need not ask
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, _ := two.Umiak(ctx, "status") // it is not ready
			if !strings.Contains(out, "6443  away") {
				return errors.New(out)
			}
			return nil
		}))
		answers()
		e.must(e.Start())
		e.must(e.Cluster.Ready(e.within(2 * patience)))
		e.nodeReady("ag2", two)
		after := e.pod(named("b"), isReady)
		if after.UID != before.UID || after.Status.ContainerStatuses[0].ContainerID != before.Status.ContainerStatuses[0].ContainerID {
			e.Errorf("the pod is another: %s, was %s", describe(after), describe(before))
		}
	})

	e.sub("two machines swap their addresses", func(e *env) { e.swap(one, two, "b") })

	e.sub("a deleted node", func(e *env) {
		e.kubectl("drain", "ag1", "--ignore-daemonsets", "--force")
		e.shutOut(one, two)
		e.must(one.Stop(e.soon()))
		// Its name becomes free after a while.
		secrets := e.Kube.CoreV1().Secrets("kube-system")
		e.must(cluster.Gone(e.soon(), secrets, "ag1.node-password.umiak", func(ctx context.Context) error {
			_, err := secrets.Get(ctx, "ag1.node-password.umiak", metav1.GetOptions{})
			return err
		}))
		// Without a token it gets an error that says so, and makes no Node; with one it is back, and the name is its
		// own again.
		e.must(one.Start("--server", e.url()))
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, _ := one.Umiak(ctx, "status")
			if !strings.Contains(out, "was deleted from the cluster") {
				return errors.New(out)
			}
			return nil
		}))
		if !strings.Contains(one.LogTail(1000), "restart it with a token") {
			t.Errorf("the log of a deleted node does not say what to do:\n%s", one.LogTail(20))
		}
		e.must(one.Stop(e.soon()))
		if _, err := e.Kube.CoreV1().Nodes().Get(e.ctx, "ag1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("a deleted node that was started without a token: %v", err)
		}
		e.must(one.Start("--server", e.url(), "--token", strings.TrimSpace(string(agentToken))))
		_, err := cluster.Until(e.soon(), secrets, named("ag1.node-password.umiak"),
			func(*corev1.Secret) (bool, string) { return true, "" })
		e.must(err)
		e.nodeReady("ag1", one)
	})
}

// identity is what a joining machine makes for itself.
type identity struct {
	req joinwire.NodeRequest
	key *ecdsa.PrivateKey
}

func newIdentity(t *testing.T, name, ip string) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &identity{key: key, req: joinwire.NodeRequest{Name: name, IPs: []string{ip},
		Password: strings.Repeat("p", 30) + name}}
	i.req.Kubelet = i.csr(t, "system:node:"+name, "system:nodes", nil, nil)
	i.req.Agent = i.csr(t, "umiak:agent:"+name, "umiak:agents", nil, nil)
	i.req.Serving = i.csr(t, "system:node:"+name, "system:nodes", []string{name}, []net.IP{net.ParseIP(ip)})
	return i
}

func (i *identity) csr(t *testing.T, cn, o string, dns []string, ips []net.IP) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: cn, Organization: []string{o}}, DNSNames: dns, IPAddresses: ips}, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// knocker asks the join API from a machine of the LAN.
type knocker struct {
	t    *testing.T
	addr string
	http *http.Client
}

func knock(t *testing.T, from *machine.Machine, addr string, cert *tls.Certificate) *knocker {
	t.Helper()
	conf := &tls.Config{InsecureSkipVerify: true} // the attacker does not care
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{DialContext: from.Dial, TLSClientConfig: conf, MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &knocker{t: t, addr: addr, http: &http.Client{Transport: tr, Timeout: patience}}
}

// ask posts a body and returns the refusal, or the answer.
func (k *knocker) ask(path, tok string, body []byte) (*joinwire.NodeResponse, *joinwire.Error) {
	k.t.Helper()
	r, err := http.NewRequest(http.MethodPost, "https://"+k.addr+path, bytes.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	if tok != "" {
		p, err := token.Parse(tok)
		if err != nil {
			k.t.Fatal(err)
		}
		r.SetBasicAuth(p.ID, p.Secret)
	}
	resp, err := k.http.Do(r)
	if err != nil {
		return nil, &joinwire.Error{Code: "network", Message: err.Error()}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, &joinwire.Error{Code: "network", Message: err.Error()}
	}
	if resp.StatusCode != http.StatusOK {
		e := &joinwire.Error{}
		if err := json.Unmarshal(raw, e); err != nil {
			e.Code, e.Message = joinwire.Code(resp.Status), string(raw)
		}
		return nil, e
	}
	out := &joinwire.NodeResponse{}
	if err := json.Unmarshal(raw, out); err != nil {
		k.t.Fatalf("%v: %s", err, raw)
	}
	return out, nil
}

// notYet is the error of a token that is still accepted.
func notYet(what string, err *joinwire.Error) error {
	if err == nil {
		return fmt.Errorf("%s is taken", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (k *knocker) node(tok string, req joinwire.NodeRequest) (*joinwire.NodeResponse, *joinwire.Error) {
	k.t.Helper()
	raw, err := json.Marshal(req)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.ask(joinwire.NodePath, tok, raw)
}

// TestJoinRefused: what may not join does not, and does not keep others from it.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "door", LAN: l}).ready()
	attacker := e.agentOn(l, "evil", nil)
	ip := attacker.M.IP
	k := knock(t, attacker.M, e.M.IP+":6443", nil)
	good := e.token("--ttl", "1h")
	parsed, err := token.Parse(good)
	e.must(err)

	others := 0 // no two nodes may have the same address
	other := func() string {
		others++
		return fmt.Sprintf("192.0.2.%d", others)
	}
	refused := func(t *testing.T, code joinwire.Code, word string, resp *joinwire.NodeResponse, err *joinwire.Error) {
		t.Helper()
		if resp != nil || err == nil || err.Code != code || !strings.Contains(err.Message, word) {
			t.Errorf("want %s (%s), got %+v, %v", code, word, err, resp != nil)
		}
	}
	t.Run("wrong CA hash", func(t *testing.T) {
		other := token.New(strings.Repeat("0", 64), parsed.ID)
		e.must(attacker.Configure(map[string]string{"server": e.url(), "token": other.Line()}))
		_, err := attacker.M.Run(e.soon(), "umiak-agent")
		if err == nil || !strings.Contains(err.Error(), "another hash") || strings.Contains(err.Error(), other.Secret) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a server with an agent's token", func(t *testing.T) {
		e.must(attacker.Configure(map[string]string{"server": e.url(), "token": good}))
		_, err := attacker.M.Run(e.soon(), "umiak", "server")
		if err == nil || !strings.Contains(err.Error(), "lets agents join, not servers") ||
			strings.Contains(err.Error(), parsed.Secret) {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(attacker.M.Host(cluster.Dirs().ServerPKI())); err == nil {
			t.Error("it has been given keys")
		}
	})
	t.Run("a server where there can be one alone", func(t *testing.T) {
		e.must(attacker.Configure(map[string]string{"server": e.url(), "token": e.token("--kind", "server")}))
		_, err := attacker.M.Run(e.soon(), "umiak", "server")
		if err == nil || !strings.Contains(err.Error(), "restart that server once with --cluster-init") {
			t.Errorf("%v", err)
		}
	})
	t.Run("tokens", func(t *testing.T) {
		n := newIdentity(t, "n1", ip)
		resp, err := k.node("", n.req)
		refused(t, joinwire.BadToken, "needed", resp, err)
		resp, err = k.node(token.New(parsed.CA, "nosuch").Line(), n.req)
		refused(t, joinwire.BadToken, "not known", resp, err)
		// a known id with a wrong secret: of another cluster
		resp, err = k.node(token.New(parsed.CA, parsed.ID).Line(), n.req)
		refused(t, joinwire.BadToken, "not known", resp, err)
		resp, err = k.node("password", n.req)
		refused(t, joinwire.BadToken, "not known", resp, err)

		short := e.token("--ttl", "1s")
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			list, err := e.Umiak(e.soon(), "token", "list")
			if err == nil && !strings.Contains(list, "expired") {
				err = errors.New(list)
			}
			return err
		}))
		resp, err = k.node(short, n.req)
		refused(t, joinwire.BadToken, "expired", resp, err)

		gone := e.token()
		id := strings.Split(gone, ".")[2]
		_, errV := e.Umiak(e.soon(), "token", "revoke", id)
		e.must(errV)
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if _, err := k.node(gone, n.req); err == nil || err.Code != joinwire.BadToken {
				return notYet("the revoked token", err)
			}
			return nil
		}))

		file := e.hostPath(cluster.Dirs().AgentToken())
		before, errR := os.ReadFile(file)
		e.must(errR)
		rotated, errR := e.Umiak(e.soon(), "token", "rotate", "agent")
		e.must(errR)
		if after, errR := os.ReadFile(file); errR != nil || string(after) != rotated || rotated == string(before) {
			t.Errorf("rotate prints %q, the file holds %q: %v", rotated, after, errR)
		}
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if _, err := k.node(string(before), n.req); err == nil || err.Code != joinwire.BadToken {
				return notYet("the old token", err)
			}
			return nil
		}))
		var list []struct{ ID, Kind, State string }
		raw, errR := e.Umiak(e.soon(), "token", "list", "-o", "json")
		if errR != nil || json.Unmarshal([]byte(raw), &list) != nil || len(list) < 3 ||
			strings.Contains(raw, "sha256") {
			t.Errorf("%v: %s", errR, raw)
		}

		once := e.token("--single-use")
		for i := range 2 {
			if _, err = k.node(once, newIdentity(t, "once", "192.0.2.200").req); err != nil {
				t.Fatalf("time %d: %v", i, err) // the same machine may ask again
			}
		}
		resp, err = k.node(once, newIdentity(t, "twice", other()).req)
		refused(t, joinwire.BadToken, "used up", resp, err)
	})
	t.Run("single use at once", func(t *testing.T) {
		once := e.token("--single-use")
		var in atomic.Int32
		var wg sync.WaitGroup
		for i := range 10 {
			n := newIdentity(t, fmt.Sprintf("race-%d", i), other())
			wg.Go(func() {
				if resp, _ := k.node(once, n.req); resp != nil {
					in.Add(1)
				}
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("%d machines have joined with one use", in.Load())
		}
	})
	t.Run("names", func(t *testing.T) {
		if _, err := k.node(good, newIdentity(t, "mine", ip).req); err != nil {
			t.Fatal(err)
		}
		thief := newIdentity(t, "mine", ip)
		thief.req.Password = strings.Repeat("x", 32)
		resp, err := k.node(good, thief.req)
		refused(t, joinwire.NameTaken, "another machine", resp, err)
		for _, name := range []string{"door", "kubernetes", "localhost", "kubernetes.default.svc", "UPPER", "",
			"../x"} {
			resp, err := k.node(good, newIdentity(t, name, ip).req)
			refused(t, joinwire.BadRequest, "node name", resp, err)
		}
	})
	t.Run("addresses", func(t *testing.T) {
		once := e.token("--single-use")
		resp, err := k.node(once, newIdentity(t, "squatter", ip).req)
		refused(t, joinwire.Busy, "is that of node mine, which runs", resp, err)
		if _, err := e.Kube.CoreV1().Secrets("kube-system").Get(e.ctx, "squatter.node-password.umiak",
			metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("what was refused has left something: %v", err)
		}
		if _, err := k.node(once, newIdentity(t, "honest", other()).req); err != nil {
			t.Errorf("the token of a join that was refused: %v", err)
		}
	})
	t.Run("certificates", func(t *testing.T) {
		for what, change := range map[string]func(*identity){
			"another node's": func(i *identity) {
				i.req.Kubelet = i.csr(t, "system:node:door", "system:nodes", nil,
					nil)
			},
			"an administrator's": func(i *identity) {
				i.req.Kubelet = i.csr(t, "system:node:n2", "system:masters", nil,
					nil)
			},
			"another agent's": func(i *identity) {
				i.req.Agent = i.csr(t, "umiak:agent:door", "umiak:agents", nil,
					nil)
			},
			"the API server's name": func(i *identity) {
				i.req.Serving = i.csr(t, "system:node:n2", "system:nodes", []string{"kubernetes"}, nil)
			},
			"one name more": func(i *identity) {
				i.req.Serving = i.csr(t, "system:node:n2", "system:nodes", []string{"n2", "kubernetes"}, nil)
			},
			"an address more": func(i *identity) {
				i.req.Serving = i.csr(t, "system:node:n2", "system:nodes", []string{"n2"},
					[]net.IP{net.ParseIP("10.9.9.9")})
			},
			"the server's address": func(i *identity) { i.req.IPs = []string{e.M.IP} },
			"a Service's address":  func(i *identity) { i.req.IPs = []string{"10.43.0.1"} },
			"loopback":             func(i *identity) { i.req.IPs = []string{"127.0.0.1"} },
			"no CSR":               func(i *identity) { i.req.Agent = "" },
		} {
			n := newIdentity(t, "n2", ip)
			change(n)
			resp, err := k.node(good, n.req)
			if resp != nil || err.Code != joinwire.BadRequest {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("renewal", func(t *testing.T) {
		n := newIdentity(t, "mine", ip)
		resp, refusal := k.node(good, n.req)
		if refusal != nil {
			t.Fatal(refusal)
		}
		block, _ := pem.Decode([]byte(resp.Agent))
		with := knock(t, attacker.M, e.M.IP+":6443",
			&tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: n.key})
		raw, _ := json.Marshal(n.req)
		if _, err := with.ask(joinwire.RenewPath, "", raw); err != nil {
			t.Errorf("an honest renewal: %v", err)
		}
		r, err := k.ask(joinwire.RenewPath, good, raw)
		refused(t, joinwire.BadIdentity, "certificate is needed", r, err)
		raw, _ = json.Marshal(newIdentity(t, "once", other()).req)
		r, err = with.ask(joinwire.RenewPath, "", raw)
		refused(t, joinwire.BadIdentity, "asks for the certificates of node once", r, err)
		stolen := n.req
		stolen.Password = strings.Repeat("x", 32)
		raw, _ = json.Marshal(stolen)
		r, err = with.ask(joinwire.RenewPath, "", raw)
		refused(t, joinwire.NameTaken, "another machine", r, err)
		block, _ = pem.Decode([]byte(resp.Kubelet))
		kubelet := knock(t, attacker.M, e.M.IP+":6443",
			&tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: n.key})
		r, err = kubelet.ask(joinwire.RenewPath, "", raw)
		refused(t, joinwire.BadIdentity, "not a node's", r, err)
	})
	t.Run("bodies", func(t *testing.T) {
		n := newIdentity(t, "n3", ip)
		raw, _ := json.Marshal(n.req)
		for what, body := range map[string][]byte{
			"empty": nil, "not JSON": []byte("{"), "a list": []byte("[]"), "two": append(raw, raw...),
			"unknown field": []byte(`{"name":"n3","admin":true}`),
			"too long":      bytes.Repeat([]byte(" "), joinwire.MaxBody+1),
			"much too long": append(raw, bytes.Repeat([]byte(" "), 8<<20)...),
			"deep":          bytes.Repeat([]byte(`{"ips":`), 5000),
		} {
			if resp, err := k.ask(joinwire.NodePath, good, body); resp != nil || err.Code != joinwire.BadRequest &&
				err.Code != "network" {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("a thousand bad joins a second", func(t *testing.T) {
		ctx, cancel := context.WithCancel(e.ctx)
		var sent, odd atomic.Int64
		var wg sync.WaitGroup
		begun := time.Now()
		bad := token.New(parsed.CA, parsed.ID).Line()
		raw, _ := json.Marshal(newIdentity(t, "flood", ip).req)
		for range 16 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := k.ask(joinwire.NodePath, bad, raw); err != nil && err.Code == joinwire.BadToken {
						sent.Add(1)
					} else {
						odd.Add(1)
					}
				}
			})
		}
		goodOnes := knock(t, e.M, e.M.IP+":6443", nil)
		var slowest time.Duration
		for i := 0; i < 20 || sent.Load() < 2000 && ctx.Err() == nil; i++ {
			at := time.Now()
			if _, err := goodOnes.node(good, newIdentity(t, fmt.Sprintf("good-%d", i), other()).req); err != nil {
				t.Errorf("good join %d: %v", i, err)
			}
			slowest = max(slowest, time.Since(at))
		}
		took := time.Since(begun)
		cancel()
		wg.Wait()
		t.Logf("%.0f bad joins a second, the slowest good one took %s", float64(sent.Load())/took.Seconds(),
			slowest.Round(time.Millisecond))
		if odd.Load() > 0 {
			t.Errorf("%d of %d bad joins did not get their refusal", odd.Load(), sent.Load())
		}
	})
	if _, err := e.Kube.CoreV1().Nodes().Get(e.ctx, "evil", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a node that was refused: %v", err)
	}
}
