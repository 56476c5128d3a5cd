package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/rights"
)

var updateRights = flag.Bool("update-rights", false, "write "+rightsFile+" anew; the test fails all the same")

// rightsFile is the list of what an agent's credentials open.
const rightsFile = "testdata/agent-rights.txt"

// attack is an attacker who has read the disk of an agent's node.
type attack struct {
	*env
	node, victim string // the attacker's node and another's
	from         *cluster.Cluster
	space, other string // a namespace with Pods of both nodes, and one of the victim's alone
	pods         map[string]*metav1.ObjectMeta
	admin        *http.Client

	mu    sync.Mutex
	found rights.Found
}

// intruder asks with one of the identities.
type intruder struct {
	*attack
	who  string
	cert tls.Certificate
	http *http.Client
}

// fixture is what a Pod of the fixture's name uses: a node may read that of its own Pods.
const fixture = `
apiVersion: v1
kind: Secret
metadata: {name: %[1]s}
stringData: {word: tenant-secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[3]s-%[1]s}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  claimRef: {namespace: %[3]s, name: %[1]s}
  hostPath: {path: /var/tmp}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {storageClassName: "", volumeName: %[3]s-%[1]s, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}, annotations: {tenant: tenant-secret}}
spec:
  nodeName: %[2]s
  serviceAccountName: %[1]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: "registry.test/app:1"
    imagePullPolicy: Never
    ports: [{name: web, containerPort: 8080}]
    env: [{name: PASSWORD, value: tenant-secret}]
    volumeMounts: [{name: s, mountPath: /s}, {name: m, mountPath: /m}, {name: v, mountPath: /v}]
  volumes: [{name: s, secret: {secretName: %[1]s}}, {name: m, configMap: {name: %[1]s}}, {name: v, persistentVolumeClaim: {claimName: %[1]s}}]
---
apiVersion: v1
kind: Event
metadata: {name: %[1]s}
involvedObject: {apiVersion: v1, kind: Pod, namespace: %[3]s, name: %[1]s}
reason: Made
message: x
type: Normal
count: 1
source: {component: e2e}
`

// attacked tries with the credentials of an agent's node whatever there is to try, and compares what is allowed with
// rightsFile.
func (e *env) attacked(from, victim *cluster.Cluster) {
	a := &attack{env: e, node: from.M.Name, victim: victim.M.Name, from: from, space: e.ns, found: rights.Found{},
		pods: map[string]*metav1.ObjectMeta{}}
	others := *e
	others.namespace()
	a.other = others.ns
	e.apply(fmt.Sprintf(fixture, "own", a.node, a.space))
	e.apply(fmt.Sprintf(fixture, "beside", a.victim, a.space))
	others.apply(fmt.Sprintf(fixture, "other", a.victim, a.other))
	for name, in := range map[string]*env{"own": e, "beside": e, "other": &others} {
		a.pods[name] = &in.pod(named(name), isReady).ObjectMeta
	}
	ev := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"},
		InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: "kube-system", Name: "coredns"}}
	_, err := e.Kube.CoreV1().Events("kube-system").Create(e.ctx, ev, metav1.CreateOptions{})
	e.must(err)
	a.admin, err = rest.HTTPClientFor(e.REST)
	e.must(err)

	began := time.Now()
	tried := 0
	for who, file := range map[string]string{"agent": "agent-client", "kubelet": "kubelet-client"} {
		i := a.intruder(who, file)
		for _, part := range []func() []func(context.Context) error{i.resources, i.paths, i.verbs, i.joining,
			i.kubelets, i.sightings, func() []func(context.Context) error { return i.sharing(victim) }} {
			work := part()
			tried += len(work)
			g, ctx := errgroup.WithContext(e.within(2 * patience))
			g.SetLimit(16)
			for _, f := range work {
				g.Go(func() error { return f(ctx) })
			}
			e.must(g.Wait())
		}
		i.tunnel()
	}
	e.Logf("%d attempts in %v", tried, time.Since(began).Round(time.Millisecond))
	a.podAddresses(victim)
	a.compare()
	a.policy()
}

// policy shows that little is enough: a NetworkPolicy selects Pods of another node by their label, and a port by its
// name.
func (a *attack) policy() {
	a.Helper()
	a.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: across}
spec:
  podSelector: {matchLabels: {app: own}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: beside}}}], ports: [{port: web}]}]
`)
	for pod, want := range map[string]bool{"b": false, "beside": true} { // both on the victim's node
		url := "http://" + a.pod(named(pod), isReady).Status.PodIP + ":8080/"
		a.must(cluster.Eventually(a.soon(), func(context.Context) error {
			out, err := a.in("own", "get", url)
			if (err == nil) != want {
				return fmt.Errorf("own gets %s of %s: %q, %w", url, pod, out, err)
			}
			return nil
		}))
	}
}

// podAddresses reports addresses of others as those of a Pod of the attacker's node: traffic to Services and what
// NetworkPolicies allow would follow them.
func (a *attack) podAddresses(victim *cluster.Cluster) {
	a.Helper()
	i := a.intruder("kubelet", "kubelet-client")
	own := a.pod(named("own"), isReady).Status
	report := func(status map[string]any) (int, string) {
		a.Helper()
		raw, err := json.Marshal(map[string]any{"status": status})
		a.must(err)
		path := "/api/v1/namespaces/" + a.space + "/pods/own/status?dryRun=All"
		code, answer, err := i.ask(a.soon(), http.MethodPatch, path, "application/strategic-merge-patch+json", raw)
		a.must(err)
		return code, answer
	}
	podIPs := func(ip string) map[string]any {
		return map[string]any{"podIP": ip, "podIPs": []any{map[string]any{"$patch": "replace"},
			map[string]any{"ip": ip}}}
	}
	hostIPs := func(ip string) map[string]any {
		return map[string]any{"hostIP": ip, "hostIPs": []any{map[string]any{"$patch": "replace"},
			map[string]any{"ip": ip}}}
	}
	if code, answer := report(podIPs(own.PodIP)); code != http.StatusOK {
		a.Errorf("a kubelet reports the address that its Pod has: %d %.300s", code, answer)
	}
	for what, status := range map[string]map[string]any{
		"another node's Pod": podIPs(a.pod(named("beside"), isReady).Status.PodIP), "another node": podIPs(victim.M.IP),
		"the server": podIPs(a.M.IP),
		"a Service":  podIPs("10.43.0.10"), "a machine of the LAN": podIPs(a.M.LAN().Gateway()),
		"another host": hostIPs(victim.M.IP),
	} {
		if code, answer := report(status); code != http.StatusForbidden || !strings.Contains(answer, "may not report") {
			a.Errorf("a kubelet reports the address of %s for its Pod: %d %.300s", what, code, answer)
		}
	}
}

func (a *attack) compare() {
	a.Helper()
	text, err := os.ReadFile(rightsFile)
	if err != nil && !*updateRights {
		a.Fatal(err)
	}
	header, want, err := rights.Parse(string(text))
	a.must(err)
	got := rights.Explain(a.found.List(), want)
	if *updateRights {
		a.must(os.WriteFile(rightsFile, []byte(rights.Format(header, got)),
			0o644)) //nolint:gosec // a file of the repository
		a.Fatalf("%s was written anew; look at it, say what each right is for, and run without -update-rights",
			rightsFile)
	}
	if d := rights.Diff(want, got); len(d) > 0 {
		a.Errorf("what an agent's credentials open has changed. Take it away, or write it into %s with the reason:\n%s",
			rightsFile, strings.Join(d, "\n"))
	}
	for _, r := range want {
		if r.Why == "" {
			a.Errorf("%s does not say why %s may %s %s", rightsFile, r.Who, r.Verbs, r.What)
		}
	}
}

func (a *attack) intruder(who, file string) *intruder {
	a.Helper()
	pki := a.from.M.Host(cluster.Dirs().AgentPKI()) + "/"
	cert, err := tls.LoadX509KeyPair(pki+file+".crt", pki+file+".key")
	a.must(err)
	ca, err := os.ReadFile(pki + "server-ca.crt")
	a.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	tr := &http.Transport{DialContext: a.from.M.Dial, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: roots,
			Certificates: []tls.Certificate{cert}}} //nolint:gosec // upstream's minimum is ours
	a.Cleanup(tr.CloseIdleConnections)
	return &intruder{attack: a, who: who, cert: cert,
		http: &http.Client{Transport: tr, CheckRedirect: func(*http.Request,
			[]*http.Request) error {
			return http.ErrUseLastResponse
		}}}
}

// record is Found.Add for attempts at once.
func (i *intruder) record(what, scope, verb string, allowed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.found.Add(i.who, what, scope, verb, allowed)
}

// ask sends a request to the API server and returns the status and the beginning of the answer.
func (i *intruder) ask(ctx context.Context, method, path, form string, body []byte, headers ...string) (int, string,
	error) {
	return i.askAt(ctx, i.url(), method, path, form, body, headers...)
}

func (i *intruder) askAt(ctx context.Context, base, method, path, form string, body []byte, headers ...string) (int,
	string, error) {
	for {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		if form != "" {
			req.Header.Set("Content-Type", form)
		}
		for k := 0; k+1 < len(headers); k += 2 {
			req.Header.Set(headers[k], headers[k+1])
		}
		resp, err := i.http.Do(req)
		if err != nil {
			return 0, "", err
		}
		raw := []byte{}
		if !strings.Contains(path, "watch=1") || resp.StatusCode != http.StatusOK { // a watch has been let in
			raw, _ = io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // who hangs up in the middle has answered
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests || strings.Contains(path, "/eviction") {
			return resp.StatusCode, string(raw), nil
		}
		select { // it says when to come again
		case <-time.After(time.Second):
		case <-ctx.Done():
			return 0, "", context.Cause(ctx)
		}
	}
}

// letIn reports whether the API server has admitted a request.
func letIn(code int, answer string) bool {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed:
		return false
	case http.StatusNotFound:
		return !strings.Contains(answer, "could not find the requested resource") &&
			!strings.Contains(answer, "404 page not found")
	}
	return true
}

// target is an object that is tried, in a scope.
type target struct{ scope, namespace, name string }

// targets are the objects of a resource: the attacker's own, another's in the same namespace, and in others.
func (a *attack) targets(resource string, namespaced bool) []target {
	switch main, _, _ := strings.Cut(resource, "/"); {
	case main == "leases.coordination.k8s.io":
		return []target{{"own", "kube-node-lease", a.node}, {"other", "kube-node-lease", a.victim},
			{"system", "kube-system", "x"}}
	case main == "persistentvolumes":
		return []target{{"own", "", a.space + "-own"}, {"other", "", a.other + "-other"}}
	case main == "namespaces":
		return []target{{"own", "", a.space}, {"other", "", a.other}, {"system", "", "kube-system"}}
	case main == "nodes", main == "csinodes.storage.k8s.io":
		return []target{{"own", "", a.node}, {"other", "", a.victim}}
	case main == "resourceslices.resource.k8s.io":
		return []target{{"own", "", "own"}, {"other", "", "other"}}
	case !namespaced:
		return []target{{"cluster", "", "x"}}
	}
	return []target{{"own", a.space, "own"}, {"beside", a.space, "beside"}, {"other", a.other, "other"},
		{"system", "kube-system", "coredns"}}
}

// resources are attempts at each resource of discovery with each verb that it has.
func (i *intruder) resources() (out []func(context.Context) error) {
	_, lists, err := i.Kube.Discovery().ServerGroupsAndResources()
	i.must(err)
	seen := map[string]bool{}
	for _, l := range lists {
		gv := l.GroupVersion
		group, _, versioned := strings.Cut(gv, "/")
		root := "/apis/" + gv
		if !versioned {
			group, root = "", "/api/"+gv
		}
		for _, r := range l.APIResources {
			main, sub, _ := strings.Cut(r.Name, "/")
			what := main
			if group != "" {
				what += "." + group
			}
			if sub != "" {
				what += "/" + sub
			}
			if seen[what] {
				continue // in another version: rights are those of the group
			}
			seen[what] = true
			if i.isEvents(what) {
				what = "events" // one thing under two names
			}
			for _, verb := range r.Verbs {
				for _, t := range i.targets(what, r.Namespaced) {
					out = append(out, func(ctx context.Context) error {
						return i.try(ctx, root, main, sub, what, verb,
							r, t)
					})
				}
				if slices.Contains([]string{"list", "watch", "deletecollection"}, verb) {
					out = append(out, func(ctx context.Context) error {
						return i.try(ctx, root, main, sub, what, verb, r, target{scope: "all"})
					})
				}
				if what == "pods" && (verb == "list" || verb == "watch") {
					out = append(out, func(ctx context.Context) error {
						return i.try(ctx, root, main, sub, what, verb, r, target{scope: "node"})
					})
				}
			}
		}
	}
	if len(seen) < 100 {
		i.Errorf("discovery lists %d resources only", len(seen))
	}
	return out
}

func (*intruder) isEvents(what string) bool { return what == "events.events.k8s.io" }

// try sends one request.
func (i *intruder) try(ctx context.Context, root, main, sub, what, verb string, r metav1.APIResource, t target) error {
	if main == "pods" && t.scope == "system" && (verb != "create" || sub != "") {
		return nil // there is none of that name, which answers with 404 and tells nothing
	}
	collection := root
	if t.namespace != "" {
		collection += "/namespaces/" + t.namespace
	}
	collection += "/" + main
	item := collection + "/" + t.name
	if sub != "" {
		item += "/" + sub
	}
	q := url.Values{}
	switch t.scope {
	case "all":
	case "node":
		q.Set("fieldSelector", "spec.nodeName="+i.node)
	default:
		q.Set("fieldSelector", "metadata.name="+t.name)
	}
	method, path, form := http.MethodGet, item, ""
	var body []byte
	switch verb {
	case "get":
		q = url.Values{}
	case "list":
		path = collection
	case "watch":
		path = collection
		q.Set("watch", "1")
		q.Set("timeoutSeconds", "1")
	case "create":
		q, method, form = url.Values{}, http.MethodPost, "application/json"
		if sub == "" {
			path = collection
		}
		body = i.body(main, sub, what, root, r, t, true)
	case "update":
		q, method, form = url.Values{}, http.MethodPut, "application/json"
		body = i.current(ctx, item, main, sub, what, root, r, t)
	case "patch":
		q, method, form = url.Values{}, http.MethodPatch, "application/merge-patch+json"
		body = []byte(`{"metadata":{"annotations":{"attack":"x"}}}`)
		if main == "events" {
			body = []byte(`{"count":3}`)
		}
	case "delete":
		q, method = url.Values{}, http.MethodDelete
	case "deletecollection":
		method, path = http.MethodDelete, collection
	default:
		return nil // verbs that are no requests, see verbs
	}
	if method != http.MethodGet {
		q.Set("dryRun", "All")
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	code, answer, err := i.ask(ctx, method, path, form, body)
	if err != nil {
		return fmt.Errorf("%s: %s %s: %w", i.who, method, path, err)
	}
	allowed := letIn(code, answer)
	if allowed && testing.Verbose() {
		i.Logf("%s %s %s: %d %.200s", i.who, method, path, code, strings.ReplaceAll(answer, "\n", " "))
	}
	i.record(what, t.scope, verb, allowed)
	return nil
}

// current is what a replacement of an object would look like: it as the administrator sees it, with an annotation.
func (i *intruder) current(ctx context.Context, item, main, sub, what, root string, r metav1.APIResource,
	t target) []byte {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, i.REST.Host+item, nil)
	if err != nil {
		return nil
	}
	resp, err := i.admin.Do(req)
	if err == nil {
		defer resp.Body.Close()
		var o map[string]any
		if resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(&o) == nil {
			if m, ok := o["metadata"].(map[string]any); ok {
				m["annotations"] = map[string]any{"attack": "x"}
				delete(m, "resourceVersion")
				raw, _ := json.Marshal(o)
				return raw
			}
		}
	}
	return i.body(main, sub, what, root, r, t, false)
}

// body is a new object. Where admission decides by what stands in it, it stands there.
func (i *intruder) body(main, sub, what, root string, r metav1.APIResource, t target, fresh bool) []byte {
	group, version := r.Group, r.Version
	if version == "" {
		gv := strings.TrimPrefix(strings.TrimPrefix(root, "/apis/"), "/api/")
		if g, v, ok := strings.Cut(gv, "/"); ok {
			group, version = g, v
		} else {
			version = gv
		}
	}
	if group != "" {
		version = group + "/" + version
	}
	name := t.name
	if fresh && sub == "" && main != "nodes" && main != "csinodes" && main != "leases" {
		name += "-new"
	}
	meta := map[string]any{"name": name}
	if t.namespace != "" {
		meta["namespace"] = t.namespace
	}
	o := map[string]any{"apiVersion": version, "kind": r.Kind, "metadata": meta}
	node := i.node
	if t.scope != "own" {
		node = i.victim
	}
	spec := map[string]any{}
	switch what {
	case "pods": // the stand-in for a Pod of a file on the node
		if t.scope == "other" || t.scope == "system" {
			node = i.node // the scope is the namespace
		}
		meta["annotations"] = map[string]any{"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x",
			"kubernetes.io/config.source": "file"}
		meta["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "Node", "name": node,
			"uid": i.uid(node), "controller": true}}
		spec["nodeName"] = node
		spec["containers"] = []any{map[string]any{"name": "c", "image": "registry.test/app:1"}}
		spec["automountServiceAccountToken"] = false
		o["spec"] = spec
	case "pods/eviction":
		o["deleteOptions"] = map[string]any{"dryRun": []string{"All"}}
	case "pods/binding", "bindings":
		o["target"] = map[string]any{"kind": "Node", "name": i.node}
	case "serviceaccounts/token":
		ref := map[string]any{"apiVersion": "v1", "kind": "Pod", "name": t.name}
		if p := i.pods[t.name]; p != nil {
			ref["uid"] = p.UID
		}
		o["spec"] = map[string]any{"boundObjectRef": ref, "audiences": []string{}}
		delete(meta, "name")
	case "events":
		pod := map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": t.namespace, "name": t.name}
		o["involvedObject"], o["reason"], o["message"], o["type"] = pod, "Attack", "x", "Warning"
		if group != "" {
			delete(o, "involvedObject")
			delete(o, "message")
			o["regarding"], o["note"], o["action"], o["eventTime"], o["reportingController"], o["reportingInstance"] = pod, "x", "x", "2026-01-01T00:00:00.000000Z", "a.test/x", "x"
		}
	case "leases.coordination.k8s.io":
		o["spec"] = map[string]any{"holderIdentity": i.node, "leaseDurationSeconds": 40}
	case "resourceslices.resource.k8s.io":
		o["spec"] = map[string]any{"nodeName": node, "driver": "a.test",
			"pool": map[string]any{"name": "p", "generation": 1, "resourceSliceCount": 1}}
	case "subjectaccessreviews.authorization.k8s.io", "localsubjectaccessreviews.authorization.k8s.io":
		o["spec"] = map[string]any{"user": "x", "resourceAttributes": map[string]any{"verb": "get",
			"resource": "pods", "namespace": t.namespace}}
	case "selfsubjectaccessreviews.authorization.k8s.io":
		o["spec"] = map[string]any{"resourceAttributes": map[string]any{"verb": "get", "resource": "pods"}}
	case "selfsubjectrulesreviews.authorization.k8s.io":
		o["spec"] = map[string]any{"namespace": "default"}
	case "certificatesigningrequests.certificates.k8s.io":
		o["spec"] = map[string]any{"signerName": "kubernetes.io/kube-apiserver-client-kubelet",
			"usages":  []string{"digital signature", "client auth"},
			"request": []byte(newIdentity(i.T, i.node, i.from.M.IP).req.Kubelet)}
	case "tokenreviews.authentication.k8s.io":
		o["spec"] = map[string]any{"token": "x"}
	}
	raw, err := json.Marshal(o)
	i.must(err)
	return raw
}

// uid is a Node's.
func (a *attack) uid(node string) string {
	n, err := a.Kube.CoreV1().Nodes().Get(a.ctx, node, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return string(n.UID)
}

// verbs asks the API server for rights that are no requests of their own, and tries to impersonate others.
func (i *intruder) verbs() (out []func(context.Context) error) {
	for _, v := range []struct{ verb, group, resource string }{
		{"*", "*", "*"}, {"impersonate", "", "users"}, {"impersonate", "", "groups"},
		{"impersonate", "", "serviceaccounts"}, {"impersonate", "authentication.k8s.io", "uids"},
		{"impersonate", "authentication.k8s.io", "userextras"}, {"bind", "rbac.authorization.k8s.io", "clusterroles"},
		{"escalate", "rbac.authorization.k8s.io", "clusterroles"},
		{"bind", "rbac.authorization.k8s.io", "roles"}, {"escalate", "rbac.authorization.k8s.io", "roles"},
		{"approve", "certificates.k8s.io", "signers"},
		{"sign", "certificates.k8s.io", "signers"}, {"attest", "certificates.k8s.io", "signers"},
		{"upgrade", "", "nodes"}, {"create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient"},
		{"create", "certificates.k8s.io", "certificatesigningrequests/nodeclient"}, {"get", "", "nodes/metrics"},
		{"get", "", "nodes/log"}, {"get", "", "nodes/stats"},
		{"get", "", "nodes/configz"}, {"get", "", "nodes/pods"}, {"get", "", "nodes/healthz"},
		{"get", "", "nodes/checkpoint"},
	} {
		out = append(out, func(ctx context.Context) error {
			raw := fmt.Sprintf(`{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":%q,"group":%q,"resource":%q}}}`, v.verb, v.group, v.resource)
			code, answer, err := i.ask(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
				"application/json", []byte(raw))
			if err == nil && code != http.StatusCreated {
				err = fmt.Errorf("ask for the right to %s %s: %d %s", v.verb, v.resource, code, answer)
			}
			i.record("verb:"+v.resource, "all", v.verb, strings.Contains(answer, `"allowed":true`))
			return err
		})
	}
	for who, headers := range map[string][]string{
		"the administrator": {"Impersonate-User", "umiak:admin", "Impersonate-Group", "system:masters"},
		"another node":      {"Impersonate-User", "system:node:" + i.victim, "Impersonate-Group", "system:nodes"},
	} {
		out = append(out, func(ctx context.Context) error {
			code, answer, err := i.ask(ctx, http.MethodGet, "/version", "", nil, headers...)
			i.record("as:"+strings.ReplaceAll(who, " ", "-"), "all", "impersonate", letIn(code, answer))
			return err
		})
	}
	// Headers by which a proxy in front names the user count from that proxy alone.
	out = append(out, func(ctx context.Context) error {
		code, answer, err := i.ask(ctx, http.MethodGet, "/api/v1/secrets", "", nil, "X-Remote-User", "umiak:admin",
			"X-Remote-Group", "system:masters")
		i.record("as:front-proxy", "all", "impersonate", letIn(code, answer))
		return err
	})
	return out
}

// paths are attempts at what is no resource: each path that the API server lists to the administrator, and some it
// does not.
func (i *intruder) paths() (out []func(context.Context) error) {
	raw, err := i.Kube.Discovery().RESTClient().Get().AbsPath("/").DoRaw(i.soon())
	i.must(err)
	var list struct{ Paths []string }
	i.must(json.Unmarshal(raw, &list))
	list.Paths = append(list.Paths, "/", "/debug/pprof/", "/debug/pprof/heap", "/debug/flags/v", "/configz", "/statusz",
		"/flagz", "/logs/", "/metrics/slis", "/umiak/v1/", "/umiak/v1/x")
	for _, p := range list.Paths {
		// Those of one kind stand for each other in the list: /apis/apps/v1 and /apis.
		first, _, deeper := strings.Cut(strings.TrimPrefix(p, "/"), "/")
		what := "path:/" + first
		if deeper && first != "readyz" && first != "livez" && first != "healthz" && first != "apis" && first != "api" &&
			first != "openapi" {
			what = "path:" + p
		}
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
			out = append(out, func(ctx context.Context) error {
				code, answer, err := i.ask(ctx, method, p, "", nil)
				if err != nil {
					return fmt.Errorf("%s: %s %s: %w", i.who, method, p, err)
				}
				i.record(what, p, method, letIn(code, answer))
				return nil
			})
		}
	}
	return out
}

// sightings are M2 of the reading: what an identity sees of Pods of other nodes, in any form, are no values.
func (i *intruder) sightings() (out []func(context.Context) error) {
	for _, path := range []string{"/api/v1/pods", "/api/v1/namespaces/" + i.space + "/pods", "/api/v1/namespaces/" +
		i.space + "/pods/beside", "/api/v1/namespaces/" + i.other + "/pods/other",
		"/api/v1/pods?watch=true&timeoutSeconds=1", "/api/v1/watch/pods?timeoutSeconds=1", "/api/v1/events",
		"/api/v1/nodes", "/api/v1/namespaces", "/api/v1/services"} {
		for _, accept := range []string{"application/json", runtime.ContentTypeProtobuf, "application/yaml",
			"application/cbor", "application/json;as=Table;v=v1;g=meta.k8s.io",
			"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"} {
			out = append(out, func(ctx context.Context) error {
				code, answer, err := i.ask(ctx, http.MethodGet, path, "", nil, "Accept", accept)
				if strings.Contains(answer, "tenant-secret") {
					i.Errorf("%s: GET %s as %s shows another node's Pods' values: %d", i.who, path, accept, code)
				}
				if i.who == "agent" && strings.HasPrefix(path, "/api/v1/pods") && accept == "application/json" &&
					!strings.Contains(answer, `"beside"`) {
					i.Errorf("an agent does not see other nodes' Pods at all, which policies need: %d %.300s", code,
						answer)
				}
				return err
			})
		}
	}
	return out
}

// longList is M3 of the reading: a kubelet may not make its Node so long that others are busy with it; and where
// an administrator has done so, another Node's range of Pods still has its route everywhere soon.
func (e *env) longList(from *cluster.Cluster, nodes ...*cluster.Cluster) {
	imageNames := make([]string, 100_000)
	for n := range imageNames {
		imageNames[n] = fmt.Sprintf("reg.test/a/%d:1", n)
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"images": []any{map[string]any{"names": imageNames}}}})
	e.must(err)
	i := (&attack{env: e, from: from}).intruder("kubelet", "kubelet-client")
	code, answer, err := i.ask(e.soon(), http.MethodPatch, "/api/v1/nodes/"+from.M.Name+"/status",
		"application/merge-patch+json", patch)
	if err != nil || code != http.StatusForbidden || !strings.Contains(answer, "names of images") {
		e.Errorf("a kubelet reports 100,000 names of images: %d %.300s, %v", code, answer, err)
	}
	all := e.Kube.CoreV1().Nodes()
	add := func(name, podRange, ip string) {
		e.Helper()
		const prefix = "flannel.alpha.coreos.com/"
		_, err := all.Create(e.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
			Annotations: map[string]string{
				prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan", prefix +
					"backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, len(name)), prefix +
					"public-ip": ip,
			}}, Spec: corev1.NodeSpec{PodCIDR: podRange, PodCIDRs: []string{podRange}}}, metav1.CreateOptions{})
		e.must(err)
		e.Cleanup(func() { _ = all.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	add("long", "10.42.201.0/24", "192.0.2.201")
	for range 2 { // each change is another one to work on
		_, err = all.Patch(e.ctx, "long", types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		e.must(err)
		patch = bytes.Replace(patch, []byte("reg.test/a/"), []byte("reg.test/b/"), 1)
	}
	began := time.Now()
	add("fresh", "10.42.200.0/24", "192.0.2.200")
	for _, n := range nodes {
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := n.M.Run(ctx, "ip", "-4", "route", "show", "10.42.200.0/24")
			if err == nil && !strings.Contains(out, "flannel.1") {
				err = fmt.Errorf("%s has no route to the new Node's range: %q", n.M.Name, out)
			}
			return err
		}))
	}
	// The key of its tunnel is no other's, in whatever letters: what is sent to it would go to the other.
	patch, err = json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		"flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"02-00-00-00-00-05"}`,
	}}})
	e.must(err)
	code, answer, err = i.ask(e.soon(), http.MethodPatch, "/api/v1/nodes/"+from.M.Name, "application/merge-patch+json",
		patch)
	if err != nil || code != http.StatusForbidden || !strings.Contains(answer, "the key of node fresh") {
		e.Errorf("a kubelet names the tunnel of another node as its own: %d %.300s, %v", code, answer, err)
	}
	e.Logf("a new range is routed everywhere after %v beside a Node with 100,000 names",
		time.Since(began).Round(time.Millisecond))
}
