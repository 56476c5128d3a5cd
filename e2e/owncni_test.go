package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
)

// kubeProxyImage is upstream's kube-proxy, of the module's version.
const kubeProxyImage = "registry.test/kube-proxy:1"

// kubeProxy is what users install as kube-proxy: a DaemonSet that finds the API where every node has it, since nothing
// serves the Service kubernetes before it runs. The machine's nft is mounted.
const kubeProxy = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: kube-proxy}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s-kube-proxy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-proxier"}
subjects: [{kind: ServiceAccount, name: kube-proxy, namespace: %[1]s}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy}
data:
  kubeconfig: |
    apiVersion: v1
    kind: Config
    clusters:
    - name: c
      cluster: {server: "https://127.0.0.1:6444", certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
    users:
    - name: u
      user: {tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}
    contexts:
    - name: x
      context: {cluster: c, user: u}
    current-context: x
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-proxy}
spec:
  selector: {matchLabels: {app: kube-proxy}}
  template:
    metadata: {labels: {app: kube-proxy}}
    spec:
      hostNetwork: true
      serviceAccountName: kube-proxy
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      volumes:
      - {name: config, configMap: {name: kube-proxy}}
      - {name: usr, hostPath: {path: /usr}}
      containers:
      - name: kube-proxy
        image: registry.test/kube-proxy:1
        imagePullPolicy: Never
        securityContext: {privileged: true}
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        args: [--proxy-mode=nftables, --kubeconfig=/etc/kube-proxy/kubeconfig, --hostname-override=$(NODE), --cluster-cidr=10.99.0.0/24,
          --conntrack-max-per-core=0, --conntrack-tcp-timeout-established=0, --conntrack-tcp-timeout-close-wait=0]
        readinessProbe: {httpGet: {path: /healthz, port: 10256, host: 127.0.0.1}, periodSeconds: 1}
        volumeMounts:
        - {name: config, mountPath: /etc/kube-proxy}
        - {name: usr, mountPath: /usr, readOnly: true}
`

// uninitialized is the taint of a node whose cloud controller has not seen it yet.
const uninitialized = "node.cloudprovider.kubernetes.io/uninitialized"

// buildKubeProxy builds upstream's kube-proxy into an archive. A module that it alone needs is added to a copy of go.mod.
func buildKubeProxy(ctx context.Context, dir, archive string) error {
	root, err := cluster.Checkout()
	if err != nil {
		return err
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		raw, err := os.ReadFile(filepath.Join(root, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), raw, 0o644)
		}
		if err != nil {
			return err
		}
	}
	program := filepath.Join(dir, "kube-proxy")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-modfile="+filepath.Join(dir, "go.mod"), "-ldflags=-s -w",
		"-o", program, "k8s.io/kubernetes/cmd/kube-proxy")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build kube-proxy: %w: %s", err, out)
	}
	img, err := images.OfProgram(ctx, program)
	if err != nil {
		return err
	}
	return images.Set{kubeProxyImage: img}.Write(archive, kubeProxyImage)
}

// TestOwnNetwork runs a node whose pod network, service proxy and cloud controller are the user's: a CNI configuration
// in /etc/cni/net.d with a plugin in /opt/cni/bin, upstream's kube-proxy, and a cloud controller of a few lines. What
// umiak has on such a node is its DNS.
func TestOwnNetwork(t *testing.T) {
	t.Parallel()
	e := off(t, cluster.Options{Name: "cni", Settings: map[string]string{"flannel-backend": "none",
		"disable-kube-proxy": "true", "disable-network-policy": "true",
		"kubelet-arg": "[cloud-provider=external, 'provider-id=lab://a']"}})
	e.must(buildKubeProxy(e.ctx, t.TempDir(), e.hostPath(cluster.Dirs().Images(), "kube-proxy.tar")))
	// What an earlier run with other settings has left.
	_, err := e.M.Run(e.soon(), "nft", "add table inet umiak-proxy; add table ip umiak-policy; "+
		"add table netdev umiak-source; add table inet umiak-network")
	e.must(err)
	e.must(e.Start())
	e.must(e.APIReady(e.within(2 * patience)))
	e.must(e.M.Do(func() error {
		return errors.Join(
			os.MkdirAll("/opt/cni/bin", 0o755),
			os.WriteFile("/opt/cni/bin/bridge", []byte("#!/bin/sh\necho used >/opt/used\nexec "+
				cluster.Dirs().Bundle()+"/current/cni/bridge\n"), 0o755),
			os.MkdirAll("/etc/cni/net.d", 0o755),
			os.WriteFile("/etc/cni/net.d/10-mine.conflist", []byte(`{"cniVersion": "1.0.0", "name": "mine", "plugins": [
				{"type": "bridge", "bridge": "mine0", "isDefaultGateway": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "/run/mine", "ranges": [[{"subnet": "10.99.0.0/24"}]]}},
				{"type": "portmap", "capabilities": {"portMappings": true}}]}`), 0o644))
	}))
	e.ready()
	e.apply(fmt.Sprintf(kubeProxy, e.ns))
	e.pod(labeled("app=kube-proxy"), isReady)
	e.apply(strings.ReplaceAll(fmt.Sprintf(web, e.ns), "spec:\n  hostname: srv", "spec:\n  tolerations: [{operator: Exists}]\n  hostname: srv"))
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: cli}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
`)
	cli := e.pod(named("cli"), isReady)
	e.pod(named("srv"), isReady)
	if !strings.HasPrefix(cli.Status.PodIP, "10.99.0.") {
		t.Errorf("address %s is not of the user's network", cli.Status.PodIP)
	}
	if _, err := os.Stat(e.hostPath("/opt/used")); err != nil {
		t.Errorf("the plugin in /opt/cni/bin was not used: %v", err)
	}
	if left, err := filepath.Glob(e.hostPath(cluster.Dirs().CNIConfig(), "*")); err != nil || len(left) > 0 {
		t.Errorf("umiak's own configuration: %q, %v", left, err)
	}
	e.sub("Services and names before the node is initialized", func(e *env) {
		e.oneNode(func(n *corev1.Node) error {
			if n.Spec.ProviderID != "lab://a" {
				return fmt.Errorf("provider ID %q", n.Spec.ProviderID)
			}
			return tainted(n, uninitialized, true)
		})
		me := "srv " + cli.Status.PodIP
		e.becomes("cli", me, "get", "http://cluster."+e.ns+".svc.cluster.local/")
		e.becomes("cli", me, "udp", e.service("cluster").Spec.ClusterIP+":81")
		e.becomes("cli", "10.43.0.1", "lookup", "host", "kubernetes.default")
		if out, err := e.in("cli", "tcp", "10.43.0.1:443"); err != nil && strings.Contains(err.Error(), "refused") {
			e.Errorf("the API server's Service: %q, %v", out, err)
		}
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			_, err := e.in("cli", "get", fmt.Sprintf("http://%s:%d/", e.M.IP, e.service("node").Spec.Ports[0].NodePort))
			return err
		}))
	})
	e.sub("endpoints of DNS for another proxy", dnsEndpoints)
	e.sub("no tables but those of DNS and kube-proxy", func(e *env) {
		out, err := e.M.Run(e.soon(), "nft", "list", "tables")
		e.must(err)
		for line := range strings.Lines(out) {
			if !strings.HasSuffix(line, " kube-proxy\n") && line != "table inet umiak-dns\n" {
				e.Errorf("there is %s", line)
			}
		}
		for _, key := range []string{"disable-kube-proxy", "disable-network-policy"} {
			if e.statusLine("rules", "off", key) == "" {
				e.Errorf("status does not have %s", key)
			}
		}
	})
	e.sub("the cloud controller initializes the node", initialize)
}

// dnsEndpoints asks the DNS of the node as a proxy does that takes the query before nftables: at the endpoint.
func dnsEndpoints(e *env) {
	list, err := e.Kube.DiscoveryV1().EndpointSlices("kube-system").List(e.ctx,
		labeled(discoveryv1.LabelServiceName+"=kube-dns"))
	e.must(err)
	if len(list.Items) != 1 || len(list.Items[0].Endpoints) != 1 ||
		!slices.Equal(list.Items[0].Endpoints[0].Addresses, []string{e.M.IP}) {
		e.Fatalf("%+v", list.Items)
	}
	at := fmt.Sprintf("%s:%d", e.M.IP, *list.Items[0].Ports[0].Port)
	out, err := e.exec(e.soon(), "cli", "", "nslookup", "kubernetes.default.svc.cluster.local", at)
	if err != nil || !strings.Contains(out, "10.43.0.1") {
		e.Errorf("the endpoint %s: %v\n%s", at, err, out)
	}
}

// initialize is a cloud controller: it gives the node the addresses that the cloud has for it, and removes the taint.
// Then pods without a toleration run.
func initialize(e *env) {
	addresses := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: e.M.IP},
		{Type: corev1.NodeExternalIP, Address: "203.0.113.7"}, {Type: corev1.NodeInternalDNS, Address: "a.lab.internal"},
		{Type: corev1.NodeHostName, Address: e.M.Name}}
	body, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": addresses}})
	e.must(err)
	nodes := e.Kube.CoreV1().Nodes()
	_, err = nodes.Patch(e.ctx, e.M.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	e.must(err)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		n, err := nodes.Get(ctx, e.M.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == uninitialized })
		_, err = nodes.Update(ctx, n, metav1.UpdateOptions{})
		return err
	}))
	e.client("late")
	e.becomes("late", "10.43.0.1", "lookup", "host", "kubernetes.default")
	e.oneNode(func(n *corev1.Node) error {
		if !slices.Equal(n.Status.Addresses, addresses) {
			return fmt.Errorf("addresses %+v", n.Status.Addresses)
		}
		return tainted(n, uninitialized, false)
	})
}

// TestSettingsOfServersReachAgents joins an agent, changes what the servers' settings turn off, and restarts both once:
// the agent, which starts with what it knew, follows. On the way it has its address by an interface's name, further
// names, and an external address to which other nodes send.
func TestSettingsOfServersReachAgents(t *testing.T) {
	t.Parallel()
	l, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := own(t, cluster.Options{Name: "s1", LAN: l, Settings: map[string]string{"node-ip": "eth0",
		"node-external-dns": "s1.example.com"}}).ready()
	a := e.agentOn(l, "a1", map[string]string{"node-ip": "eth0", "node-internal-dns": "a1.lan",
		"node-external-ip": "203.0.113.9"})
	e.agentReady(a)
	addr := func(kind corev1.NodeAddressType, a string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: kind, Address: a}
	}
	for name, want := range map[string][]corev1.NodeAddress{
		"s1": {addr(corev1.NodeInternalIP, e.M.IP), addr(corev1.NodeExternalDNS, "s1.example.com"),
			addr(corev1.NodeHostName, "s1")},
		"a1": {addr(corev1.NodeInternalIP, a.M.IP), addr(corev1.NodeExternalIP, "203.0.113.9"),
			addr(corev1.NodeInternalDNS, "a1.lan"), addr(corev1.NodeHostName, "a1")},
	} {
		_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Nodes(), named(name), func(n *corev1.Node) (bool, string) {
			return slices.Equal(n.Status.Addresses, want), fmt.Sprint(n.Status.Addresses)
		})
		e.must(err)
	}
	tables := func() string {
		out, err := a.M.Run(e.soon(), "nft", "list", "tables")
		e.must(err)
		return out
	}
	if out := tables(); !strings.Contains(out, "umiak-proxy") {
		t.Errorf("there is no service proxy: %s", out)
	}
	e.must(e.Stop(e.soon()))
	e.must(e.Configure(map[string]string{"node-ip": "eth0", "disable-kube-proxy": "true",
		"disable-network-policy": "true", "flannel-external-ip": "true"}))
	e.must(e.Start())
	e.must(e.Ready(e.within(2 * patience)))
	e.must(a.Stop(e.soon()))
	e.must(a.Start("--server", e.url()))
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		out, err := a.M.Run(ctx, "umiak-agent", "status") // an error while a part is not ready
		if err == nil && (!strings.Contains(out, "disable-kube-proxy") || !strings.Contains(out, "disable-network-policy")) {
			err = errors.New("it knows nothing of the settings")
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}))
	if out := tables(); strings.Contains(out, "umiak-proxy") || !strings.Contains(out, "umiak-network") {
		t.Errorf("there is %s", out)
	}
	e.client("cli") // which no policies wait for, and whose names resolve without a proxy
	e.becomes("cli", "10.43.0.1", "lookup", "host", "kubernetes.default")
	_, err = cluster.Until(e.soon(), e.Kube.CoreV1().Nodes(), named("a1"), func(n *corev1.Node) (bool, string) {
		public := n.Annotations["flannel.alpha.coreos.com/public-ip"]
		return public == "203.0.113.9", "other nodes send to " + public
	})
	e.must(err)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		list, err := e.Kube.DiscoveryV1().EndpointSlices("kube-system").List(ctx,
			labeled(discoveryv1.LabelServiceName+"=kube-dns"))
		if err == nil && (len(list.Items) != 1 || len(list.Items[0].Endpoints) != 2) {
			err = fmt.Errorf("%+v", list.Items)
		}
		return err
	}))
}
