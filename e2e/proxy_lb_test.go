package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/umiak-io/umiak/e2e/cluster"
)

const balanced = `
apiVersion: v1
kind: Pod
metadata: {name: srv, labels: {app: srv}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: registry.test/app:1
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: srv}, ports: [{name: http, port: 7080, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: srv}, ports: [{port: 7081, targetPort: http}]}
`

func TestServiceLoadBalancer(t *testing.T) {
	e := share(t)
	// A program of the host, from before anybody wanted its port.
	var host net.Listener
	e.must(e.M.Do(func() (err error) {
		host, err = (&net.ListenConfig{}).Listen(e.ctx, "tcp", ":7099")
		return err
	}))
	defer host.Close()
	go func() {
		for {
			c, err := host.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "the host")
			_ = c.Close()
		}
	}()
	e.apply(balanced)
	e.pod(named("srv"), isReady)
	// is waits for the Service's addresses and the reason in its condition.
	is := func(service, addrs, reason string) {
		t.Helper()
		_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Services(e.ns), named(service),
			func(s *corev1.Service) (bool, string) {
				var ips []string
				for _, in := range s.Status.LoadBalancer.Ingress {
					ips = append(ips, in.IP)
				}
				c := meta.FindStatusCondition(s.Status.Conditions, "umiak.io/LoadBalancer")
				return c != nil && c.Reason == reason && strings.Join(ips, " ") == addrs, fmt.Sprintf("%v %+v", ips, c)
			})
		e.must(err)
	}
	lan := func(port int, want string) {
		t.Helper()
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.fromLAN(fmt.Sprintf("%s:%d", e.M.IP, port))
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("got %q, want %q", out, want)
			}
			return err
		}))
	}
	is("web", e.M.IP, "Served")
	lan(7080, "srv ")
	is("local", e.M.IP, "Served")
	lan(7081, "srv "+e.M.LAN().Gateway()) // and sees who asks

	e.apply(`
apiVersion: v1
kind: Service
metadata: {name: second}
spec: {type: LoadBalancer, selector: {app: srv}, ports: [{port: 7080}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {type: LoadBalancer, selector: {app: srv}, ports: [{port: 6443}]}
---
apiVersion: v1
kind: Service
metadata: {name: host}
spec: {type: LoadBalancer, selector: {app: srv}, ports: [{port: 7099, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec: {type: LoadBalancer, loadBalancerClass: example.org/other, selector: {app: srv}, ports: [{port: 7080}]}
`)
	is("second", "", "PortConflict")
	is("api", "", "PortReserved")
	is("host", "", "HostPortInUse")
	lan(7099, "the host")
	_ = host.Close()
	is("host", e.M.IP, "Served") // after the next look at the sockets
	lan(7099, "srv ")
	e.kubectl("delete", "service", "web")
	is("second", e.M.IP, "Served")
	if s := e.service("foreign"); len(s.Status.LoadBalancer.Ingress)+len(s.Status.Conditions) > 0 {
		t.Errorf("somebody else's Service: %+v", s.Status)
	}
	if out := e.kubectl("get", "events", "--field-selector", "involvedObject.name=second"); !strings.Contains(out,
		"PortConflict") {
		t.Errorf("no event tells of the conflict:\n%s", out)
	}
	// What has no endpoint any more is taken from the nodes.
	e.kubectl("delete", "pod", "srv")
	is("local", "", "NoAddress")
}

func TestServiceExplained(t *testing.T) {
	e := share(t)
	e.apply(fmt.Sprintf(web, e.ns))
	e.pod(named("srv"), isReady)
	for name, want := range map[string]string{
		"cluster":  "a new connection goes to ",
		"node":     "node port ",
		"nobody":   "no endpoints",
		"headless": "headless: DNS answers",
		"outside":  "ExternalName: DNS answers",
	} {
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := e.Umiak(ctx, "debug", "service", e.ns+"/"+name)
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("debug service %s: no %q in\n%s", name, want, out)
			}
			return err
		}))
	}
	out, err := e.Umiak(e.soon(), "debug", "service", "-o", "json", e.ns+"/cluster")
	e.must(err)
	if !strings.Contains(out, `"why": "ready, on this node"`) {
		t.Errorf("JSON: %s", out)
	}
}
