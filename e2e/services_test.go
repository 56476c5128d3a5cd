package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// web is a server with a Service of each kind.
const web = `
apiVersion: v1
kind: Pod
metadata: {name: srv, labels: {app: srv}}
spec:
  hostname: srv
  subdomain: headless
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: registry.test/app:1
    ports: [{name: http, containerPort: 8080}, {name: echo, containerPort: 8081}, {name: dgram, containerPort: 8081, protocol: UDP}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: cluster}
spec:
  selector: {app: srv}
  ports: [{name: http, port: 80, targetPort: http}, {name: echo, port: 81, targetPort: echo}, {name: dgram, port: 81, protocol: UDP, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: srv}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec: {type: NodePort, selector: {app: srv}, ports: [{name: http, port: 80, targetPort: http}, {name: dgram, port: 81, protocol: UDP, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: cluster.%[1]s.svc.cluster.local}
`

func (e *env) service(name string) *corev1.Service {
	e.Helper()
	s, err := e.Kube.CoreV1().Services(e.ns).Get(e.ctx, name, getOptions)
	e.must(err)
	return s
}

func TestServicesAndNames(t *testing.T) {
	e := share(t)
	e.apply(fmt.Sprintf(web, e.ns))
	e.client("cli")
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", command: [sleep, "10000"]}]
`)
	srv, cli := e.pod(named("srv"), isReady), e.pod(named("cli"), isReady)
	e.pod(named("host"), isReady)
	ip, node := srv.Status.PodIP, e.service("node")
	full := e.ns + ".svc.cluster.local"
	me := "srv " + cli.Status.PodIP

	e.sub("cluster IP", func(e *env) {
		e.becomes("cli", me, "get", "http://cluster/")
		e.becomes("cli", me, "get", "http://cluster."+full+"/")
		e.becomes("cli", me, "get", "http://"+e.service("cluster").Spec.ClusterIP+"/")
		e.becomes("cli", me, "tcp", e.service("cluster").Spec.ClusterIP+":81")
		e.becomes("cli", me, "udp", e.service("cluster").Spec.ClusterIP+":81")
	})
	e.sub("hairpin", func(e *env) {
		// A pod that reaches itself through a Service must be answered, whatever its source address is then.
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.in("srv", "get", "http://cluster/")
			if err == nil && !strings.HasPrefix(out, "srv ") {
				err = fmt.Errorf("got %q", out)
			}
			return err
		}))
	})
	e.sub("node port", func(e *env) {
		for _, from := range []string{"cli", "host"} {
			e.must(cluster.Eventually(e.soon(), func(context.Context) error {
				_, err := e.in(from, "get", fmt.Sprintf("http://%s:%d/", e.M.IP, node.Spec.Ports[0].NodePort))
				return err
			}))
			if _, err := e.in(from, "udp", fmt.Sprintf("%s:%d", e.M.IP, node.Spec.Ports[1].NodePort)); err != nil {
				e.Errorf("UDP from %s: %v", from, err)
			}
		}
		// From another machine on the LAN.
		out, err := e.fromLAN(fmt.Sprintf("%s:%d", e.M.IP, node.Spec.Ports[0].NodePort))
		if err != nil || !strings.Contains(out, "srv ") {
			e.Errorf("from the LAN: %q, %v", out, err)
		}
	})
	e.sub("from the host", func(e *env) {
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			_, err := e.in("host", "get", "http://cluster."+full+"/")
			return err
		}))
	})
	e.sub("no endpoints are refused at once", func(e *env) {
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			begun := time.Now()
			_, err := e.in("cli", "tcp", e.service("nobody").Spec.ClusterIP+":80")
			if err == nil || !strings.Contains(err.Error(), "refused") {
				return fmt.Errorf("after %s: %w", time.Since(begun), err)
			}
			return nil
		}))
	})
	e.sub("names", func(e *env) {
		dashed := strings.ReplaceAll(ip, ".", "-")
		for _, c := range []struct{ from, kind, name, want string }{
			{"cli", "host", "cluster", e.service("cluster").Spec.ClusterIP},
			{"cli", "host", "cluster." + e.ns, e.service("cluster").Spec.ClusterIP},
			{"cli", "host", "kubernetes.default", "10.43.0.1"},
			{"cli", "host", "headless", ip},
			{"cli", "host", "srv.headless", ip},
			{"cli", "host", "outside", e.service("cluster").Spec.ClusterIP},
			{"cli", "srv", "_http._tcp.cluster." + full, "cluster." + full + ".:80"},
			{"cli", "srv", "_http._tcp.headless." + full, "srv.headless." + full + ".:8080"},
			{"cli", "ptr", e.service("cluster").Spec.ClusterIP, "cluster." + full + "."},
			// A pod behind several Services has a name in each.
			{"cli", "ptr", ip, dashed + ".cluster." + full + ".\n" + dashed + ".node." + full + ".\nsrv.headless." +
				full + "."},
			{"cli", "host", dashed + "." + e.ns + ".pod.cluster.local", ip},
			{"host", "host", "cluster." + e.ns, e.service("cluster").Spec.ClusterIP},
			{"host", "srv", "_http._tcp.cluster." + full, "cluster." + full + ".:80"},
		} {
			e.becomes(c.from, c.want, "lookup", c.kind, c.name)
		}
		if out, err := e.in("cli", "lookup", "host", "nothing-here."+full); err == nil ||
			!strings.Contains(err.Error(), "no such host") {
			e.Errorf("a name that is not there: %q, %v", out, err)
		}
	})
	e.sub("endpoints follow readiness", func(e *env) {
		e.kubectl("delete", "pod", "srv", "--wait=false")
		_, err := cluster.Until(e.soon(), e.Kube.DiscoveryV1().EndpointSlices(e.ns),
			labeled("kubernetes.io/service-name=cluster"), func(s *discoveryv1.EndpointSlice) (bool, string) {
				return len(s.Endpoints) == 0, fmt.Sprintf("%d endpoints", len(s.Endpoints))
			})
		e.must(err)
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if out, err := e.in("cli", "tcp", e.service("cluster").Spec.ClusterIP+":81"); err == nil {
				return fmt.Errorf("still answered: %q", out)
			}
			return nil
		}))
	})
}

// fromLAN asks a web server from outside of the machine.
func (e *env) fromLAN(addr string) (out string, err error) {
	err = e.M.LAN().Do(func() error {
		c, err := dialer.DialContext(e.soon(), "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		raw, err := io.ReadAll(c)
		out = string(raw)
		return err
	})
	return out, err
}

func TestPodsReachEachOtherAndTheWorld(t *testing.T) {
	e := share(t)
	e.client("a")
	e.client("b")
	a, b := e.pod(named("a"), isReady), e.pod(named("b"), isReady)
	e.becomes("a", "b "+a.Status.PodIP, "get", "http://"+b.Status.PodIP+":8080/")
	// The API, with the pod's own account.
	out, err := e.exec(e.soon(), "a", "", "sh", "-c", "app tcp $KUBERNETES_SERVICE_HOST:443 2>&1 || true")
	e.must(err)
	if strings.Contains(out, "refused") {
		t.Errorf("API from a pod: %s", out)
	}
	// Outside of the cluster, a pod is seen as its node.
	l, err := e.listenOnLAN()
	e.must(err)
	defer l.Close()
	saw := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			saw <- err.Error()
			return
		}
		saw <- c.RemoteAddr().String()
		_, _ = io.WriteString(c, "hello\n")
		_ = c.Close()
	}()
	if out, err := e.in("a", "tcp", l.Addr().String()); err != nil || out != "hello" {
		t.Fatalf("outside: %q, %v", out, err)
	}
	if got := <-saw; !strings.HasPrefix(got, e.M.IP+":") {
		t.Errorf("outside sees %s, want the node's %s", got, e.M.IP)
	}
}

var dialer = net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}

// listenOnLAN listens at the LAN's gateway, which is no machine of the cluster.
func (e *env) listenOnLAN() (l net.Listener, err error) {
	err = e.M.LAN().Do(func() error {
		l, err = (&net.ListenConfig{}).Listen(e.ctx, "tcp", e.M.LAN().Gateway()+":0")
		return err
	})
	return l, err
}

func TestOutsideNamesAreForwarded(t *testing.T) {
	e := share(t)
	e.client("cli")
	// The machine's resolv.conf names the LAN's gateway, where no server has listened so far.
	e.must(e.M.LAN().Do(func() error {
		p, err := (&net.ListenConfig{}).ListenPacket(e.ctx, "udp", e.M.LAN().Gateway()+":53")
		if err != nil {
			return err
		}
		srv := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(answerOutside)}
		go func() { _ = srv.ActivateAndServe() }()
		e.Cleanup(func() { _ = srv.Shutdown() })
		return nil
	}))
	e.becomes("cli", "192.0.2.7", "lookup", "host", "www.outside.test")
	if out, err := e.in("cli", "lookup", "host", "nothing.outside.test"); err == nil ||
		!strings.Contains(err.Error(), "no such host") {
		t.Errorf("a name that is not there: %q, %v", out, err)
	}
}

// answerOutside knows one name of the world outside.
func answerOutside(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg)
	a.SetReply(q)
	switch {
	case len(q.Question) != 1 || q.Question[0].Name != "www.outside.test.":
		a.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
			Ttl: 5}, A: net.IPv4(192, 0, 2, 7)}}
	}
	_ = w.WriteMsg(a)
}
