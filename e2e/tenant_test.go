package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

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

// TestTenant: a user with edit rights in one namespace takes nothing of the system's or of other tenants' (issue 13).
func TestTenant(t *testing.T) {
	e := share(t)
	e.apply(fmt.Sprintf(tenant, e.ns))
	e.client("evil")
	e.client("friend")
	e.sub("Services", (*env).tenantServices)
	e.sub("ports of the host", (*env).tenantHostPorts)
	e.sub("what is the administrators'", (*env).tenantRights)
	e.sub("forged sources", (*env).tenantSources)
	e.sub("policies and floods", (*env).tenantFloods)
}

// asTenant makes an object as the tenant: in the test's namespace, if it says no other.
func (e *env) asTenant(text string) error {
	var o unstructured.Unstructured
	e.must(json.Unmarshal([]byte(text), &o.Object))
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(e.Kube.Discovery()))
	gvk := o.GroupVersionKind()
	m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	e.must(err)
	cfg := rest.CopyConfig(e.REST)
	cfg.Impersonate.UserName = "system:serviceaccount:" + e.ns + ":tenant"
	client, err := dynamic.NewForConfig(cfg)
	e.must(err)
	r := dynamic.ResourceInterface(client.Resource(m.Resource))
	if m.Scope.Name() == "namespace" {
		r = client.Resource(m.Resource).Namespace(cmp.Or(o.GetNamespace(), e.ns))
	}
	_, err = r.Create(e.soon(), &o, metav1.CreateOptions{})
	return err
}

// nft runs nft on the machine.
func (e *env) nft(args ...string) (string, error) {
	var out []byte
	err := e.M.Do(func() (err error) {
		out, err = exec.CommandContext(e.soon(), "nft", args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// tenantServices ask for addresses and ports of the system.
func (e *env) tenantServices() {
	for _, ip := range []string{e.M.IP, "127.0.0.1", "169.254.169.254", "169.254.53.53", "10.43.0.1", "10.43.0.10",
		"192.0.2.7", e.pod(named("friend"), isReady).Status.PodIP} {
		err := e.asTenant(fmt.Sprintf(thief, "thief", ip, 6443))
		if err == nil || !strings.Contains(err.Error(), "service-external-ips") &&
			!strings.Contains(err.Error(), "may not be in the") {
			e.Errorf("external IP %s: %v", ip, err)
		}
	}
	for what, spec := range map[string]string{
		"the API's address":         `{"clusterIP":"10.43.0.1","ports":[{"port":443}]}`,
		"the address of DNS":        `{"clusterIP":"10.43.0.10","ports":[{"port":53,"protocol":"UDP"}]}`,
		"an address outside":        `{"clusterIP":"` + e.M.IP + `","ports":[{"port":80}]}`,
		"link-local":                `{"clusterIP":"169.254.53.53","ports":[{"port":80}]}`,
		"the API's port of nodes":   `{"type":"NodePort","ports":[{"port":80,"nodePort":6443}]}`,
		"the kubelet's port":        `{"type":"NodePort","ports":[{"port":80,"nodePort":10250}]}`,
		"the kubelet's, for health": `{"type":"LoadBalancer","externalTrafficPolicy":"Local","healthCheckNodePort":10250,"ports":[{"port":80}]}`,
	} {
		if err := e.asTenant(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"thief"},"spec":` + spec +
			`}`); err == nil {
			e.Errorf("a Service with %s is taken", what)
		}
	}
	// Endpoints of his own choice are not for him: they could lead to the kubelet, the API or the cloud's metadata.
	for _, ip := range []string{e.M.IP, "127.0.0.1", "169.254.169.254", "10.43.0.1", "192.0.2.7"} {
		for _, text := range []string{
			`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"thief","labels":{"kubernetes.io/service-name":"thief"}},"addressType":"IPv4","ports":[{"port":10250}],"endpoints":[{"addresses":["` + ip + `"]}]}`,
			`{"apiVersion":"v1","kind":"Endpoints","metadata":{"name":"thief"},"subsets":[{"addresses":[{"ip":"` + ip +
				`"}],"ports":[{"port":10250}]}]}`,
		} {
			if err := e.asTenant(text); err == nil || !strings.Contains(err.Error(), "orbidden") {
				e.Errorf("endpoints at %s: %v", ip, err)
			}
		}
	}
	e.apply(`
apiVersion: v1
kind: Service
metadata: {name: balancer}
spec: {type: LoadBalancer, loadBalancerClass: example.org/own, ports: [{port: 6443}]}
`)
	for ip, why := range map[string]string{e.M.IP: "the API server", "127.0.0.1": "loopback",
		"169.254.169.254": "link-local", "10.43.0.10": "pods or Services"} {
		out, err := e.Kubectl(e.soon(), "-n", e.ns, "patch", "service", "balancer", "--subresource=status",
			"--type=merge", "-p",
			fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, ip))
		if err == nil || !strings.Contains(out+err.Error(), why) {
			e.Errorf("balancer at %s: %s, %v", ip, out, err)
		}
	}
	// Umiak's own balancer gives ports of the system to no Service, whatever address is asked for.
	e.must(e.asTenant(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"ports"},"spec":{"type":"LoadBalancer","loadBalancerIP":"` + e.M.IP + `","selector":{"app":"evil"},
		"ports":[{"name":"a","port":6443,"targetPort":8081},{"name":"b","port":10250,"targetPort":8081},{"name":"c","port":5001,"targetPort":8081}]}}`))
	_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Services(e.ns), named("ports"),
		func(s *corev1.Service) (bool, string) {
			return len(s.Status.Conditions) > 0, fmt.Sprintf("no condition says that its ports are reserved: %+v",
				s.Status)
		})
	e.must(err)
	out, err := e.nft("list", "table", "ip", "umiak-proxy")
	e.must(err)
	for _, port := range []string{"6443", "10250", "5001"} {
		if strings.Contains(out, e.M.IP+" . tcp . "+port) {
			e.Errorf("port %s of the node leads to a tenant: %s", port, out)
		}
	}
	c, err := e.M.Dial(e.soon(), "tcp", net.JoinHostPort(e.M.IP, "6443"))
	e.must(err)
	_ = c.Close()
}

// tenantHostPorts: a pod's hostPort takes no port of the system.
func (e *env) tenantHostPorts() {
	for port, holder := range map[int]string{6443: "the API server", 10250: "the kubelet", 5001: "image sharing"} {
		name := fmt.Sprintf("port%d", port)
		e.apply(fmt.Sprintf(hostPort, name, images.App1, port))
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.Kubectl(e.soon(), "-n", e.ns, "get", "events", "--field-selector=involvedObject.name="+name,
				"-o", "jsonpath={.items[*].message}")
			if want := fmt.Sprintf("hostPort :%d/TCP of this node belongs to %s", port, holder); err == nil &&
				!strings.Contains(out, want) {
				err = fmt.Errorf("no Event of pod %s says %q: %s", name, want, out)
			}
			return err
		}))
		e.kubectl("delete", "pod", name, "--now", "--wait=false")
	}
	c, err := e.M.Dial(e.soon(), "tcp", net.JoinHostPort(e.M.IP, "6443"))
	e.must(err)
	_ = c.Close()
}

// tenantRights are tries to cut a node off by objects that are the administrators'.
func (e *env) tenantRights() {
	hook := func(kind string) string {
		return `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"` + kind + `","metadata":{"name":"tenant-` + e.ns + `"},"webhooks":[{"name":"hook.example.com","admissionReviewVersions":["v1"],"sideEffects":"None","failurePolicy":"Fail",
			"clientConfig":{"service":{"namespace":"` + e.ns + `","name":"none"}},"rules":[{"apiGroups":["","coordination.k8s.io"],"apiVersions":["*"],"operations":["*"],"resources":["nodes","nodes/status","leases"]}]}]}`
	}
	for what, text := range map[string]string{
		"a webhook on nodes and leases": hook("ValidatingWebhookConfiguration"),
		"one that changes them":         hook("MutatingWebhookConfiguration"),
		"an admission policy":           `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"x"},"spec":{"matchConstraints":{},"validations":[{"expression":"false"}]}}`,
		"a policy in kube-system":       `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"x","namespace":"kube-system"},"spec":{"podSelector":{}}}`,
		"a quota":                       `{"apiVersion":"v1","kind":"ResourceQuota","metadata":{"name":"x"},"spec":{"hard":{"pods":"0"}}}`,
		"a range of limits":             `{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"x"},"spec":{"limits":[{"type":"Pod","max":{"cpu":"1m"}}]}}`,
		"a lease of nodes":              `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"x","namespace":"kube-node-lease"},"spec":{}}`,
		"an aggregated API":             `{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1.coordination.k8s.io"},"spec":{"group":"coordination.k8s.io","version":"v1","groupPriorityMinimum":1,"versionPriority":1,"service":{"namespace":"` + e.ns + `","name":"x"}}}`,
	} {
		if err := e.asTenant(text); err == nil || !strings.Contains(err.Error(), "orbidden") {
			e.Errorf("%s: %v", what, err)
		}
	}
	for _, args := range [][]string{{"taint", "node", e.M.Name, "x=y:NoExecute"}, {"label", "node", e.M.Name, "x=y"},
		{"cordon", e.M.Name}, {"delete", "node", e.M.Name},
		{"get", "--raw", "/api/v1/nodes/" + e.M.Name + "/proxy/pods"}} {
		if out, err := e.Kubectl(e.soon(), append([]string{"--as=system:serviceaccount:" + e.ns + ":tenant"},
			args...)...); err == nil || !strings.Contains(err.Error(), "orbidden") {
			e.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

// tenantSources are datagrams from a tenant's Pod.
func (e *env) tenantSources() { e.ownSourcesOnly("evil", "friend", "") }

// ownSourcesOnly sends datagrams from a Pod's raw socket to its node, in IPv6 to the address that is given as well:
// the Pod's own address arrives, and no other, whatever the kernel checks besides.
func (e *env) ownSourcesOnly(pod, neighbour, nodeV6 string) {
	e.Helper()
	evil, friend := e.pod(named(pod), isReady), e.pod(named(neighbour), isReady)
	checked := func(context.Context) error {
		out, err := e.nft("list", "table", "netdev", "umiak-source")
		if err == nil && !strings.Contains(out, evil.Status.PodIP) {
			err = fmt.Errorf("no chain for %s: %s", evil.Status.PodIP, out)
		}
		return err
	}
	e.must(checked(e.ctx))
	var sock net.PacketConn
	e.must(e.M.Do(func() (err error) { sock, err = net.ListenPacket("udp", ":0"); return err }))
	defer sock.Close()
	_, port, err := net.SplitHostPort(sock.LocalAddr().String())
	e.must(err)
	arrive := func(what, to string, own string, sources ...string) {
		e.Helper()
		for _, src := range append(sources, own) {
			if out, err := e.in(pod, "forge", src, net.JoinHostPort(to, port)); err != nil {
				e.Fatalf("%s: send as %s: %q, %v", what, src, out, err)
			}
		}
		buf := make([]byte, 100)
		for {
			e.must(sock.SetReadDeadline(time.Now().Add(patience)))
			_, from, err := sock.ReadFrom(buf)
			if err != nil {
				e.Fatalf("%s: what the Pod sends with its own address does not arrive: %v", what, err)
			}
			ap, err := netip.ParseAddrPort(from.String())
			e.must(err)
			if ap.Addr().Unmap().String() == own {
				return
			}
			e.Errorf("%s: a datagram from %s arrives", what, ap.Addr())
		}
	}
	forged := []string{"192.0.2.1", friend.Status.PodIP, "10.42.0.250", "10.42.9.9", "10.43.0.1", "10.43.0.10",
		"169.254.53.53", e.M.IP}
	e.Cleanup(func() {
		_, _ = e.M.Run(context.Background(), "sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/cni0/rp_filter")
	})
	for _, rp := range []string{"0", "1"} {
		_, err := e.M.Run(e.soon(), "sh", "-c", "echo "+rp+" >/proc/sys/net/ipv4/conf/cni0/rp_filter")
		e.must(err)
		arrive("rp_filter="+rp, e.M.IP, evil.Status.PodIP, forged...)
	}
	if nodeV6 != "" {
		v6 := func(p *corev1.Pod) string {
			i := slices.IndexFunc(p.Status.PodIPs,
				func(ip corev1.PodIP) bool { return netip.MustParseAddr(ip.IP).Is6() })
			if i < 0 {
				e.Fatalf("%s has no IPv6 address: %v", p.Name, p.Status.PodIPs)
			}
			return p.Status.PodIPs[i].IP
		}
		arrive("IPv6", nodeV6, v6(evil), "2001:db8::1", v6(friend), "fd42::fa", "fd42::1:2", nodeV6, "fd43::a",
			"fd75:6d69:616b::53")
	}
	// They are checked again after a flush of all rules.
	_, err = e.nft("delete", "table", "netdev", "umiak-source")
	e.must(err)
	e.must(cluster.Eventually(e.soon(), checked))
	arrive("after a flush", e.M.IP, evil.Status.PodIP, forged...)
}

// tenantFloods: a namespace whose Pods may connect to nothing, and a Pod that asks DNS as fast as it can: the node
// stays ready, its Pods are entered, and other tenants' names are answered.
func (e *env) tenantFloods() {
	e.must(e.asTenant(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"nobody"},"spec":{"podSelector":{},"policyTypes":["Ingress","Egress"]}}`))
	ctx := e.soon()
	sent := make(chan string, 1)
	go func() {
		out, err := e.exec(ctx, "evil", "", "/bin/app", "flood", "10.43.0.10:53", "5")
		sent <- fmt.Sprint(strings.TrimSpace(out), " ", err)
	}()
	asked := 0
	for flooding := true; flooding; {
		select {
		case n := <-sent:
			e.Logf("DNS was asked %s times by one Pod, and %d times by another meanwhile", n, asked)
			flooding = false
		default:
			out, err := e.in("friend", "lookup", "host", "kubernetes.default.svc.cluster.local")
			if err != nil || out != "10.43.0.1" {
				e.Errorf("another Pod asks for a name: %q, %v", out, err)
			}
			asked++
		}
	}
	_ = e.logs("friend", "c")
	n, err := e.Kube.CoreV1().Nodes().Get(e.soon(), e.M.Name, getOptions)
	e.must(err)
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && (c.Status != corev1.ConditionTrue ||
			time.Since(c.LastTransitionTime.Time) < 10*time.Second) {
			e.Errorf("the node was not ready meanwhile: %+v", c)
		}
	}
}
