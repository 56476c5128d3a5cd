package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/umiak-io/umiak/e2e/cluster"
)

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1"}]
`

func TestCustomResources(t *testing.T) {
	e := share(t)
	group := e.ns + ".example.test" // CRDs have no namespace
	crd := "boats." + group
	e.apply(fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %s}
spec:
  group: %s
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [crew], properties: {crew: {type: integer, minimum: 1}}, x-kubernetes-validations: [{rule: "self.crew != 13", message: "no thirteen"}]}
          status: {type: object, properties: {afloat: {type: boolean}}}
`, crd, group))
	defs := e.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1",
		Resource: "customresourcedefinitions"})
	t.Cleanup(func() { _ = defs.Delete(context.Background(), crd, metav1.DeleteOptions{}) })
	_, err := cluster.Until(e.soon(), defs, named(crd), func(o *unstructured.Unstructured) (bool, string) {
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, c := range list {
			if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return true, ""
			}
		}
		return false, fmt.Sprint(list)
	})
	e.must(err)
	boat := func(name, crew string) string {
		return fmt.Sprintf("{apiVersion: %s/v1, kind: Boat, metadata: {name: %s}, spec: {crew: %s}}", group, name, crew)
	}
	// Discovery learns of the new kind a moment after it is served.
	e.must(cluster.Eventually(e.soon(), func(context.Context) error { return e.tryApply(boat("umiak", "9")) }))
	for crew, want := range map[string]string{"0": "greater than or equal to 1", "13": "no thirteen",
		"many": "numeric"} {
		if err := e.tryApply(boat("bad", crew)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("crew %s: %v", crew, err)
		}
	}
	boats := e.Dynamic.Resource(schema.GroupVersionResource{Group: group, Version: "v1",
		Resource: "boats"}).Namespace(e.ns)
	o, err := boats.Get(e.ctx, "umiak", getOptions)
	e.must(err)
	o.Object["status"] = map[string]any{"afloat": true}
	_, err = boats.UpdateStatus(e.ctx, o, metav1.UpdateOptions{})
	e.must(err)
	if out := e.kubectl("get", "boats."+group, "-o", "jsonpath={.items[*].status.afloat}"); out != "true" {
		t.Errorf("kubectl sees %q", out)
	}
}

func TestAdmissionWebhookInAPod(t *testing.T) {
	e := share(t)
	crt, key := certificate(t, "hook."+e.ns+".svc")
	e.apply(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: tls}
data: {tls.crt: %s, tls.key: %s}
---
apiVersion: v1
kind: Pod
metadata: {name: hook, labels: {app: hook}}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: tls, secret: {secretName: tls}}]
  containers: [{name: c, image: "registry.test/app:1", args: [webhook, /tls], volumeMounts: [{name: tls, mountPath: /tls}], readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
`, b64(crt), b64(key)))
	e.pod(named("hook"), isReady)
	hook := e.webhook("Mutating", crt)
	t.Cleanup(func() {
		_ = e.Kube.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), hook,
			metav1.DeleteOptions{})
	})
	cms := e.Kube.CoreV1().ConfigMaps(e.ns)
	n := 0
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error { // until the configuration is in force
		n++
		cm, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("seen-", n)}},
			metav1.CreateOptions{})
		if err == nil && cm.Labels["seen"] != "yes" {
			err = fmt.Errorf("labels are %v", cm.Labels)
		}
		return err
	}))
	_, err := cms.Create(e.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "forbidden-one"}},
		metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "the webhook says no") {
		t.Errorf("the webhook's refusal: %v", err)
	}
}

func TestQuotaAndLimitRanges(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: LimitRange
metadata: {name: limits}
spec:
  limits: [{type: Container, default: {memory: 64Mi}, defaultRequest: {cpu: 10m, memory: 32Mi}, max: {memory: 128Mi}}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: quota}
spec: {hard: {pods: "2", requests.memory: 100Mi}}
`)
	_, err := cluster.Until(e.soon(), e.Kube.CoreV1().ResourceQuotas(e.ns), named("quota"),
		func(q *corev1.ResourceQuota) (bool, string) {
			return len(q.Status.Hard) == 2, fmt.Sprint(q.Status)
		})
	e.must(err)
	e.apply(fmt.Sprintf(pod, "one", "one"))
	p := e.pod(named("one"), isReady)
	if r := p.Spec.Containers[0].Resources; r.Limits.Memory().String() != "64Mi" || r.Requests.Cpu().String() != "10m" {
		t.Errorf("defaults: %v", r)
	}
	big := strings.Replace(fmt.Sprintf(pod, "big", "big"), `"registry.test/app:1"}`,
		`"registry.test/app:1", resources: {limits: {memory: 1Gi}}}`, 1)
	if err := e.tryApply(big); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "maximum memory usage") {
		t.Errorf("above the limit range: %v", err)
	}
	e.apply(fmt.Sprintf(pod, "two", "two"))
	if err := e.tryApply(fmt.Sprintf(pod, "three", "three")); !apierrors.IsForbidden(err) ||
		!strings.Contains(err.Error(), "exceeded quota") {
		t.Errorf("above the quota: %v", err)
	}
	e.kubectl("delete", "pod", "two")
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		return e.tryApply(fmt.Sprintf(pod, "three",
			"three"))
	}))
}

func TestDisruptionBudgetHolds(t *testing.T) {
	e := share(t)
	e.apply(deployment + `
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
`)
	e.rolledOut("web")
	budget := func(allowed int32) {
		t.Helper()
		_, err := cluster.Until(e.soon(), e.Kube.PolicyV1().PodDisruptionBudgets(e.ns), named("web"),
			func(b *policyv1.PodDisruptionBudget) (bool, string) {
				return b.Status.ObservedGeneration == b.Generation && b.Status.CurrentHealthy >= 2 &&
					b.Status.DisruptionsAllowed == allowed, fmt.Sprintf("%+v", b.Status)
			})
		e.must(err)
	}
	budget(0)
	l, err := e.Kube.CoreV1().Pods(e.ns).List(e.ctx, labeled("app=web"))
	e.must(err)
	evict := func(name string) error {
		return e.Kube.PolicyV1().Evictions(e.ns).Evict(e.ctx,
			&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.ns}})
	}
	if err := evict(l.Items[0].Name); !apierrors.IsTooManyRequests(err) {
		t.Fatalf("the eviction was not refused: %v", err)
	}
	e.kubectl("scale", "deployment", "web", "--replicas=3")
	e.rolledOut("web")
	budget(1)
	e.must(evict(l.Items[0].Name))
	e.rolledOut("web")
}

func TestPodSecurityAdmission(t *testing.T) {
	e := share(t)
	e.kubectl("label", "namespace", e.ns, "pod-security.kubernetes.io/enforce=restricted")
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if err := e.tryApply(fmt.Sprintf(pod, "lax", "lax")); !apierrors.IsForbidden(err) ||
			!strings.Contains(err.Error(), "violates PodSecurity") {
			return fmt.Errorf("a pod that asks for more than is allowed: %w", err)
		}
		return nil
	}))
}

// certificate makes a self-signed server certificate.
func certificate(t *testing.T, name string) (crt, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		DNSNames:  []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	var c, p bytes.Buffer
	if err := pem.Encode(&c, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := pem.Encode(&p, &pem.Block{Type: "PRIVATE KEY", Bytes: kd}); err != nil {
		t.Fatal(err)
	}
	return c.Bytes(), p.Bytes()
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
