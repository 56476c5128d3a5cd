package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

const tenant = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: tenant}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: ServiceAccount, name: tenant, namespace: %s}]
`

const hostPort = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %q, ports: [{containerPort: 8080, hostPort: %d}]}]
`

const thief = `{"apiVersion":"v1","kind":"Service","metadata":{"name":%q},"spec":{"externalIPs":[%q],"ports":[{"port":%d}]}}`

// TestTenant: who may edit one namespace takes nothing of the system's (issue 13): no address or port by a Service, and no other
// address by a pod's raw socket.
func TestTenant(t *testing.T) {
	e := share(t)
	e.apply(fmt.Sprintf(tenant, e.ns))
	as := "--as=system:serviceaccount:" + e.ns + ":tenant"
	for _, port := range []int{6443, 10250, 80} {
		out, err := e.KubectlInput(e.soon(), strings.NewReader(fmt.Sprintf(thief, "thief", e.M.IP, port)), "-n", e.ns, as, "create", "-f", "-")
		if err == nil || !strings.Contains(out+err.Error(), "service-external-ips") {
			t.Errorf("external IP %s:%d: %s, %v", e.M.IP, port, out, err)
		}
	}
	e.apply(`
apiVersion: v1
kind: Service
metadata: {name: balancer}
spec: {type: LoadBalancer, loadBalancerClass: example.org/own, ports: [{port: 6443}]}
`)
	for ip, why := range map[string]string{e.M.IP: "the API server", "127.0.0.1": "every machine", "10.43.0.10": "pods or Services"} {
		out, err := e.Kubectl(e.soon(), "-n", e.ns, "patch", "service", "balancer", "--subresource=status", "--type=merge", "-p",
			fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, ip))
		if err == nil || !strings.Contains(out+err.Error(), why) {
			t.Errorf("balancer at %s: %s, %v", ip, out, err)
		}
	}
	nft := func(args ...string) (string, error) {
		var out []byte
		err := e.M.Do(func() (err error) {
			out, err = exec.CommandContext(e.soon(), "nft", args...).CombinedOutput()
			return err
		})
		return string(out), err
	}
	if out, err := nft("list", "table", "ip", "umiak-proxy"); err != nil || strings.Contains(out, e.M.IP+" . tcp . 6443") {
		t.Errorf("%v: %s", err, out)
	}
	c, err := e.M.Dial(e.soon(), "tcp", net.JoinHostPort(e.M.IP, "6443"))
	e.must(err)
	_ = c.Close()

	// A pod's hostPort takes no port of the system.
	for port, holder := range map[int]string{6443: "the API server", 10250: "the kubelet", 5001: "image sharing"} {
		name := fmt.Sprintf("port%d", port)
		e.apply(fmt.Sprintf(hostPort, name, images.App1, port))
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.Kubectl(e.soon(), "-n", e.ns, "get", "events", "--field-selector=involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
			if want := fmt.Sprintf("hostPort :%d/TCP of this node belongs to %s", port, holder); err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("no Event of pod %s says %q: %s", name, want, out)
			}
			return err
		}))
		e.kubectl("delete", "pod", name, "--now", "--wait=false")
	}
	c, err = e.M.Dial(e.soon(), "tcp", net.JoinHostPort(e.M.IP, "6443"))
	e.must(err)
	_ = c.Close()

	// The pod's interface checks what it sends, and is checked again when somebody has flushed all rules.
	e.client("evil")
	p := e.pod(named("evil"), isReady)
	checked := func(context.Context) error {
		out, err := nft("list", "table", "netdev", "umiak-source")
		if err == nil && !strings.Contains(out, p.Status.PodIP) {
			err = fmt.Errorf("no chain for %s: %s", p.Status.PodIP, out)
		}
		return err
	}
	e.must(checked(e.ctx))
	_, err = nft("delete", "table", "netdev", "umiak-source")
	e.must(err)
	e.must(cluster.Eventually(e.soon(), checked))
}
