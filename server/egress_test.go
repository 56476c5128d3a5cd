package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	agenttunnel "github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/server/pki"
)

const (
	farIP  = "203.0.113.7" // the node's, to which there is no way but the tunnel
	podNet = "10.42.7.0/24"
	farPod = "10.42.7.5"
)

// farNode is a node as the API server sees it: a tunnel, and behind it a kubelet and one pod.
type farNode struct {
	kubelet string

	mu    sync.Mutex
	asked []string // what the agent was asked to connect to
}

// tlsServer serves h until the test ends and returns its address.
func tlsServer(t *testing.T, cert, key string, h http.HandlerFunc) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, h)
}

func serveOn(t *testing.T, l net.Listener, h http.HandlerFunc) string {
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

func newFarNode(t *testing.T, dir string) (*farNode, []byte) {
	t.Helper()
	n := &farNode{}
	own := config(dir).Dirs().AgentPKI()
	n.kubelet = tlsServer(t, filepath.Join(own, "kubelet-serving.crt"), filepath.Join(own, "kubelet-serving.key"),
		func(w http.ResponseWriter, r *http.Request) {
			if len(r.TLS.PeerCertificates) == 0 ||
				r.TLS.PeerCertificates[0].Subject.CommonName != "umiak:kubelet-client" {
				http.Error(w, "who are you", http.StatusUnauthorized)
				return
			}
			fmt.Fprintf(w, "kubelet %s", r.URL.Path)
		})
	// The pod serves HTTP, and by TLS a webhook and an API.
	authority, err := pki.Ensure(pki.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	leaf := pki.Leaf{Name: "hook", CA: pki.ServerCA, CommonName: "hook", Server: true,
		DNSNames: []string{"hook.default.svc"}, CertFile: authority.File("hook.crt"),
		KeyFile: authority.File("hook.key")}
	if err := authority.Add(leaf); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ports := map[string]string{
		farPod + ":8080": serveOn(t, l, func(w http.ResponseWriter,
			r *http.Request) {
			fmt.Fprintf(w, "pod %s", r.URL.Path)
		}),
		farPod + ":8443": tlsServer(t, leaf.CertFile, leaf.KeyFile, hook),
		n.kubelet:        n.kubelet,
	}
	tunnels := agenttunnel.New(agenttunnel.Config{
		Servers:  func() ([]string, <-chan struct{}) { return []string{"127.0.0.1:6443"}, nil },
		ServerCA: filepath.Join(own, "server-ca.crt"), Cert: filepath.Join(own, "agent-client.crt"),
		Key: filepath.Join(own, "agent-client.key"),
		Allow: agenttunnel.Allow{Node: "n1", Kubelet: netip.MustParseAddrPort(n.kubelet),
			PodRanges: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(podNet)} }},
		Connect: func(ctx context.Context, network, addr string) (net.Conn, error) {
			n.mu.Lock()
			n.asked = append(n.asked, addr)
			n.mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, network, ports[addr])
		},
		Log: slog.Default(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tunnels.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "tunnel", func(ctx context.Context) error {
		if rows := tunnels.Section(ctx).Rows; len(rows) != 1 || rows[0].State != "open" {
			return fmt.Errorf("status: %+v", rows)
		}
		return nil
	})
	return n, authority.CAPEM(pki.ServerCA)
}

// hook is an admission webhook, a conversion webhook and an aggregated API.
func hook(w http.ResponseWriter, r *http.Request) {
	var in struct {
		APIVersion, Kind string
		Request          struct {
			UID               string
			DesiredAPIVersion string           `json:"desiredAPIVersion"`
			Objects           []map[string]any `json:"objects"`
		}
	}
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	var out any
	switch r.URL.Path {
	case "/validate":
		out = map[string]any{"apiVersion": in.APIVersion, "kind": in.Kind, "response": map[string]any{
			"uid": in.Request.UID, "allowed": false, "status": map[string]any{"message": "said the pod"},
		}}
	case "/convert":
		for _, o := range in.Request.Objects {
			o["apiVersion"] = in.Request.DesiredAPIVersion
			o["by"] = "the pod"
		}
		out = map[string]any{"apiVersion": in.APIVersion, "kind": in.Kind, "response": map[string]any{
			"uid": in.Request.UID, "result": map[string]any{"status": "Success"},
			"convertedObjects": in.Request.Objects,
		}}
	case "/apis/far.umiak.test/v1":
		out = metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
			GroupVersion: "far.umiak.test/v1"}
	default:
		fmt.Fprintf(w, "pod %s", r.URL.Path)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// Every kind of connection that the API server makes to nodes and pods goes through the tunnel, which is the
// only way here. It is this test that a new release of Kubernetes has to pass.
func TestEgress(t *testing.T) {
	t.Setenv("UMIAK_TEST_HEADLESS", "1")
	dir := t.TempDir()
	p := start(t, dir)
	k := p.admin(t)
	// The node has joined.
	if _, err := k.CoreV1().Secrets(metav1.NamespaceSystem).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "n1.node-password.umiak",
			Labels: map[string]string{"umiak.io/join": "node"}}, Type: "umiak.io/node-password",
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n, ca := newFarNode(t, dir)
	farObjects(t, k, n)
	get := func(path string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		raw, err := k.RESTClient().Get().AbsPath(path).Do(ctx).Raw()
		return string(raw), err
	}
	want := func(path, answer string) {
		t.Helper()
		eventually(t, path, func(context.Context) error {
			got, err := get(path)
			if err != nil || got != answer {
				err = fmt.Errorf("got %q, %w", got, errors.Join(err, errors.New("want "+answer)))
			}
			return err
		})
	}
	post := func(path, body string) {
		t.Helper()
		if err := k.RESTClient().Post().AbsPath(path).SetHeader("Content-Type",
			"application/json").Body([]byte(body)).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	b64, err := json.Marshal(ca)
	if err != nil {
		t.Fatal(err)
	}
	withCA := func(s string) string { return strings.ReplaceAll(s, `"CA"`, string(b64)) }
	clientConfig := func(path string) string {
		return fmt.Sprintf(`"service": {"namespace": "default", "name": "hook", "path": %q, "port": 443}, "caBundle": "CA"`, path)
	}

	want("/api/v1/namespaces/default/pods/p/log", "kubelet /containerLogs/default/p/c")
	want("/api/v1/nodes/n1/proxy/metrics", "kubelet /metrics")
	want("/api/v1/namespaces/default/pods/http:p:8080/proxy/x", "pod /x")
	want("/api/v1/namespaces/default/services/http:web:80/proxy/y", "pod /y")

	post("/apis/apiregistration.k8s.io/v1/apiservices", withCA(`{"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.far.umiak.test"},
		"spec": {"group": "far.umiak.test", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100, "service": {"namespace": "default", "name": "hook"}, "caBundle": "CA"}}`))
	want("/apis/far.umiak.test/v1/z", "pod /apis/far.umiak.test/v1/z")

	post("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", withCA(`{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "far"},
		"webhooks": [{"name": "far.umiak.test", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 5,
		"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
		"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}], "clientConfig": {`+clientConfig("/validate")+`}}]}`))
	i := 0
	eventually(t, "admission webhook", func(ctx context.Context) error {
		i++
		_, err := k.CoreV1().ConfigMaps("default").Create(ctx,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "said the pod") {
			return fmt.Errorf("got %w", errors.Join(err, errors.New("not the webhook's refusal")))
		}
		return nil
	})

	version := `{"name": %q, "served": true, "storage": %t, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"by": {"type": "string"}}}}}`
	post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", withCA(`{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.crd.umiak.test"},
		"spec": {"group": "crd.umiak.test", "scope": "Cluster", "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
		"versions": [`+fmt.Sprintf(version, "v1", true)+`,`+fmt.Sprintf(version, "v2", false)+`],
		"conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {`+clientConfig("/convert")+`}}}}}`))
	eventually(t, "object with two versions", func(ctx context.Context) error {
		body := `{"apiVersion": "crd.umiak.test/v1", "kind": "Thing", "metadata": {"name": "t"}}`
		return k.RESTClient().Post().AbsPath("/apis/crd.umiak.test/v1/things").SetHeader("Content-Type",
			"application/json").Body([]byte(body)).Do(ctx).Error()
	})
	eventually(t, "conversion webhook", func(context.Context) error {
		got, err := get("/apis/crd.umiak.test/v2/things/t")
		if err == nil && !strings.Contains(got, `"by":"the pod"`) {
			err = fmt.Errorf("got %s", got)
		}
		return err
	})
	n.mu.Lock()
	t.Logf("the agent was asked for %v", n.asked)
	n.mu.Unlock()
	if took := p.stop(t); took > 5*time.Second {
		t.Errorf("stop took %v", took)
	}
}

// farObjects are the node, its pod, and Services that lead to the pod.
func farObjects(t *testing.T, k *kubernetes.Clientset, n *farNode) {
	t.Helper()
	ctx := t.Context()
	node, err := k.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec: corev1.NodeSpec{PodCIDR: podNet, PodCIDRs: []string{podNet}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: farIP},
		{Type: corev1.NodeHostName, Address: "n1"}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(netip.MustParseAddrPort(n.kubelet).Port())
	eventually(t, "node", func(ctx context.Context) error {
		_, err := k.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
		if err != nil {
			if now, e := k.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); e == nil {
				node.ResourceVersion = now.ResourceVersion
			}
		}
		return err
	})
	eventually(t, "default ServiceAccount", func(ctx context.Context) error {
		_, err := k.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	pod, err := k.CoreV1().Pods("default").Create(ctx,
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, farPod, []corev1.PodIP{{IP: farPod}}
	if _, err := k.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, ports := range map[string][2]int32{"web": {80, 8080}, "hook": {443, 8443}} {
		if _, err := k.CoreV1().Services("default").Create(ctx,
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: ports[0]}}}},
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{farPod}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p", UID: pod.UID},
			}},
			Ports: []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(ports[1]),
				Protocol: ptr.To(corev1.ProtocolTCP)}},
		}
		if _, err := k.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
