package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

// netObstacles are the rows of TestHostileSurroundings that are about the host's network.
func netObstacles() []obstacle {
	requests := &recorder{}
	return []obstacle{
		{
			name:    "port 53 held",
			arrange: func(e *env) { e.hold("53"); e.holdUDP("53") },
			then: func(e *env) {
				e.resolves("10.43.0.10")
				e.resolves("169.254.53.53")
			},
		},
		{
			name: "no address", check: []string{"address", "cable"},
			says:    []string{"join", "retrying", "has no address"},
			arrange: func(e *env) { e.sh("ip address flush dev eth0") },
			remove:  func(e *env) { e.plug(e.M.IP) },
			then: func(e *env) {
				e.nodeHas(e.M.IP)
				e.apiPublished(e.M.IP)
			},
		},
		{
			name: "node-ip not there", settings: map[string]string{"node-ip": "10.77.0.99"},
			says:   []string{"network", "10.77.0.99"},
			remove: func(e *env) { e.sh("ip address add 10.77.0.99/24 dev eth0") },
			then:   func(e *env) { e.nodeHas("10.77.0.99") },
		},
		{
			name:    "no default route",
			arrange: func(e *env) { e.sh("ip route del default") },
			then: func(e *env) {
				// The host, and so the API server with its webhooks, reaches Services.
				e.dials("10.43.0.1:443")
				e.sh("ip route flush dev lo proto 0x76")
				e.dials("10.43.0.1:443")
			},
		},
		{
			name:    "no resolver",
			check:   []string{"name servers", "names no server"},
			arrange: func(e *env) { e.sh(": >/etc/resolv.conf") },
			then: func(e *env) {
				e.fileSays("/run/umiak/resolv.conf", "nameserver 10.43.0.10")
				e.sh("echo nameserver 127.0.0.53 >/etc/resolv.conf")
				e.fileSays("/run/umiak/resolv-host.conf", "nameserver 127.0.0.53")
				e.fileSays("/run/umiak/resolv.conf", "nameserver 10.43.0.10")
				e.sh("echo nameserver 192.0.2.53 >/run/late; touch /etc/resolv.conf; mount --bind /run/late /etc/resolv.conf")
				e.fileSays("/run/umiak/resolv.conf", "nameserver 192.0.2.53")
			},
		},
		{
			name:  "firewall",
			check: []string{"firewall", "drops forwarded packets"},
			arrange: func(e *env) {
				e.sh(`nft -f - <<'END'
table inet strict {
	chain input { type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; }
	chain forward { type filter hook forward priority 0; policy drop; }
}
END`)
			},
		},
		{
			name:    "ipv6 off",
			arrange: func(e *env) { e.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1") },
			then:    func(e *env) { e.resolves("10.43.0.10") },
		},
		{
			name:     "ipv6 alone",
			settings: map[string]string{"cluster-cidr": "fd42::/56", "service-cidr": "fd43::/112"},
			images:   []string{images.App1},
			arrange: func(e *env) {
				e.sh("ip address flush dev eth0; ip address add fd77::2/64 dev eth0 nodad; ip -6 route add default via fd77::1")
			},
			then: func(e *env) {
				e.nodeHas("fd77::2")
				e.resolves("fd43::a")
				e.dials("[fd43::1]:443")
				e.namespace()
				e.apply(deployment + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
				e.rolledOut("web")
				e.client("cli")
				e.must(cluster.Eventually(e.soon(), func(context.Context) error {
					_, err := e.in("cli", "get", "http://web/")
					return err
				}))
			},
		},
		{
			name: "http proxy",
			env: []string{"HTTPS_PROXY=http://127.0.0.1:3128", "HTTP_PROXY=http://127.0.0.1:3128",
				"https_proxy=http://127.0.0.1:3128", "http_proxy=http://127.0.0.1:3128"},
			arrange: func(e *env) { requests.serve(e, "127.0.0.1:3128") },
			then:    func(e *env) { e.onlyPullsAreProxied(requests) },
		},
	}
}

// holdUDP has a program of the machine hold a UDP port.
func (e *env) holdUDP(port string) {
	e.Helper()
	cmd := e.M.Command(e.Context(), "busybox", "nc", "-u", "-l", "-p", port)
	e.must(e.M.Start(cmd))
	e.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// plug gives the machine's interface an address and the default route.
func (e *env) plug(ip string) {
	e.Helper()
	e.sh("ip address add " + ip + "/24 dev eth0; ip route replace default via " + e.M.LAN().Gateway())
}

// resolves asks a DNS server from the host for a name of the cluster.
func (e *env) resolves(server string) {
	e.Helper()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return e.M.Dial(ctx, network, net.JoinHostPort(server, "53"))
	}}
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		_, err := r.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
		return err
	}))
}

// dials connects from the host.
func (e *env) dials(addr string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		c, err := e.M.Dial(ctx, "tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
}

// nodeHas waits until the node's internal addresses are these.
func (e *env) nodeHas(ips ...string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		list, err := e.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%d nodes: %w", len(list.Items), errors.Join(err, errors.New("want one")))
		}
		var have []string
		for _, a := range list.Items[0].Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				have = append(have, a.Address)
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(ips) {
			return fmt.Errorf("the node has %v, want %v", have, ips)
		}
		return nil
	}))
}

// apiPublished waits until pods are sent to this address for the API.
func (e *env) apiPublished(ip string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		s, err := e.Kube.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(s.Endpoints) != 1 || len(s.Endpoints[0].Addresses) != 1 || s.Endpoints[0].Addresses[0] != ip {
			return fmt.Errorf("the API is published at %v, want %s", s.Endpoints, ip)
		}
		return nil
	}))
}

// fileSays waits until a file of the machine has a line.
func (e *env) fileSays(path, line string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.M.Run(ctx, "cat", path)
		if err != nil || !strings.Contains("\n"+out+"\n", "\n"+line+"\n") {
			return fmt.Errorf("%s: %q, want %q: %w", path, out, line, errors.Join(err, errors.New("not yet")))
		}
		return nil
	}))
}

// recorder is an HTTP proxy that refuses everything and remembers what it was asked for.
type recorder struct {
	mu    sync.Mutex
	asked []string
}

func (r *recorder) serve(e *env, addr string) {
	e.Helper()
	var l net.Listener
	e.must(e.M.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(e.Context(), "tcp", addr)
		return err
	}))
	e.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				r.mu.Lock()
				r.asked = append(r.asked, req.Method+" "+req.Host)
				r.mu.Unlock()
				fmt.Fprint(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			}()
		}
	}()
}

func (r *recorder) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.asked...)
}

// onlyPullsAreProxied has the API server speak to a kubelet and to a webhook, and the node pull an image.
func (e *env) onlyPullsAreProxied(r *recorder) {
	e.Helper()
	nodes, err := e.Kube.CoreV1().Nodes().List(e.soon(), metav1.ListOptions{})
	e.must(err)
	name := nodes.Items[0].Name
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error { // by way of the API server
		return e.Kube.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", name, "proxy", "healthz").Do(ctx).Error()
	}))
	e.must(e.ServiceAccount(e.soon(), "default"))
	e.ns = "default"
	e.apply(`
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {ports: [{port: 443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hook-1, labels: {kubernetes.io/service-name: hook}}
addressType: IPv4
ports: [{port: 9, protocol: TCP}]
endpoints: [{addresses: ["` + e.M.IP + `"]}]
`)
	crt, _ := certificate(e.T, "hook")
	e.webhook("Validating", crt)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		_, err := e.Kube.CoreV1().ConfigMaps("default").Create(ctx,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "hook.example.test") {
			return fmt.Errorf("the webhook is not asked: %w", errors.Join(err, errors.New("no refusal")))
		}
		return nil
	}))
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pulled}
spec: {containers: [{name: c, image: "registry.example/app:1"}]}
`)
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		for _, a := range r.list() {
			if strings.Contains(a, "registry.example") {
				return nil
			}
		}
		return fmt.Errorf("the proxy is not asked for the registry: %v", r.list())
	}))
	for _, a := range r.list() {
		if !strings.Contains(a, "registry.example") {
			e.Errorf("the proxy was asked for %s", a)
		}
	}
}

// TestNodeAddresses goes through the life of a node's addresses, in a cluster of two families without node-ip: pods run
// through all of it.
func TestNodeAddresses(t *testing.T) {
	t.Parallel()
	e := off(t, cluster.Options{Name: "moving", Settings: map[string]string{"cluster-cidr": "10.42.0.0/16,fd42::/56",
		"service-cidr": "10.43.0.0/16,fd43::/112"}})
	e.sh("ip address add fd77::2/64 dev eth0 nodad; ip -6 route add default via fd77::1")
	e.must(e.Start())
	e.ready()
	e.nodeHas(e.M.IP, "fd77::2")
	e.client("old")
	container := func() string { return e.pod(named("old"), isReady).Status.ContainerStatuses[0].ContainerID }
	before, pid := container(), e.PID()
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ported}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never, ports: [{containerPort: 8080, hostPort: 18088}]}]
`)
	e.pod(named("ported"), isReady)

	e.sub("forged sources", func(e *env) { e.ownSourcesOnly("old", "ported", "fd77::2") })
	e.sub("host ports come back", func(e *env) {
		e.dials(e.M.IP + ":18088")
		e.sh("nft flush ruleset")
		e.dials(e.M.IP + ":18088")
	})
	e.sub("another address is followed", func(e *env) {
		e.sh("ip address del " + e.M.IP +
			"/24 dev eth0; ip address add 10.77.0.88/24 dev eth0; ip route replace default via " + e.M.LAN().Gateway())
		e.nodeHas("10.77.0.88", "fd77::2")
		e.apiPublished("10.77.0.88")
		e.must(e.Cluster.Ready(e.within(2 * patience)))
		if now := container(); now != before || e.PID() != pid {
			e.Errorf("container %s became %s, process %d became %d", before, now, pid, e.PID())
		}
		ip := e.pod(named("old"), isReady).Status.PodIP
		e.becomes("old", "old "+ip, "get", "http://"+ip+":8080/")
	})
	e.sub("a boot without a cable", func(e *env) {
		e.must(e.Stop(e.soon()))
		e.sh("ip address flush dev eth0; nft flush ruleset")
		e.must(e.Start())
		e.must(e.APIReady(e.soon()))
		e.must(e.NodeReady(e.soon()))
		e.dials("127.0.0.1:18088")
		e.statusSays("address", "absent", "10.77.0.88")
		e.statusSays("network", "retrying", "10.77.0.88")
		e.client("without-a-cable")
		e.nodeHas("10.77.0.88", "fd77::2")
		e.sh("ip address add fd77::2/64 dev eth0 nodad; ip -6 route replace default via fd77::1")
		e.plug("10.77.0.88")
		e.allReady()
		if now := container(); now != before {
			e.Errorf("container %s became %s", before, now)
		}
	})
}
