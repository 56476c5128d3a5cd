package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/restmapper"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// patience is how long a test waits for one thing before it says what it saw last. It is long because the
// machine may be slow, and costs nothing when all is well.
const patience = 60 * time.Second

// shared is the cluster that most tests use, made when the first of them asks.
var shared struct {
	once sync.Once
	c    *cluster.Cluster
	err  error
}

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("e2e needs root")
		return // counts as passed: `go test ./...` by an ordinary user is not an error
	}
	if err := machine.Sweep(); err != nil {
		fmt.Println("sweep:", err)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-ch
		os.Exit(finish(130))
	}()
	os.Exit(finish(m.Run()))
}

// finish takes the shared cluster away. Machines die with this process in any case; this also removes
// their folders.
func finish(code int) int {
	if shared.c != nil {
		if err := shared.c.Destroy(); err != nil {
			fmt.Println("destroy shared cluster:", err)
			code = max(code, 1)
		}
		if code == 0 {
			_ = os.RemoveAll(shared.c.Evidence)
		}
	}
	return code
}

// env is what a test works with: a cluster and a namespace in it.
type env struct {
	*testing.T
	*cluster.Cluster
	ctx context.Context
	ns  string

	// Where postgres has made one:
	database *cluster.Cluster
	endpoint string // of the database
}

// share gives a test a namespace in the shared cluster and runs it beside others.
func share(t *testing.T) *env {
	t.Helper()
	t.Parallel()
	shared.once.Do(func() {
		shared.c, shared.err = cluster.New(cluster.Options{Name: "shared"})
		if shared.err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			shared.err = errors.Join(shared.c.Start(), shared.c.Ready(ctx))
			if shared.err != nil {
				shared.err = fmt.Errorf("%w\nevidence: %s", shared.err, shared.c.Collect("start"))
			}
		}
	})
	if shared.err != nil {
		t.Fatalf("shared cluster: %v", shared.err)
	}
	e := &env{T: t, Cluster: shared.c}
	e.ctx = e.within(3 * time.Minute)
	e.namespace()
	return e
}

// long reports whether tests that repeat something do it as often as scripts/soak asks for, which takes minutes.
func long() bool { return os.Getenv("UMIAK_SOAK") != "" }

// own gives a test a cluster of its own, which is started but perhaps not ready.
func own(t *testing.T, o cluster.Options) *env {
	t.Helper()
	e := off(t, o)
	e.must(e.Start())
	return e
}

// off is own without the start.
func off(t *testing.T, o cluster.Options) *env {
	t.Helper()
	c, err := cluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	e := &env{T: t, Cluster: c}
	e.ctx = e.within(5 * time.Minute)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("evidence: %s", c.Collect("failure"))
		}
		if err := c.Destroy(); err != nil {
			t.Errorf("destroy: %v", err)
		}
		if !t.Failed() {
			_ = os.RemoveAll(c.Evidence)
		}
	})
	return e
}

// sub runs a part of a test under a name of its own.
func (e *env) sub(name string, f func(e *env)) {
	e.Run(name, func(t *testing.T) {
		part := *e
		part.T = t
		part.ctx = part.within(2 * patience)
		f(&part)
	})
}

// ready waits for an own cluster and makes the test's namespace in it.
func (e *env) ready() *env {
	e.Helper()
	e.must(e.Cluster.Ready(e.within(2 * patience)))
	e.namespace()
	return e
}

// within is a context that ends with the test or after d.
func (e *env) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(e.Context(), d, fmt.Errorf("nothing more was waited for after %s", d))
	e.Cleanup(cancel)
	return ctx
}

// soon is the context for one wait.
func (e *env) soon() context.Context { return e.within(patience) }

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *env) namespace() {
	e.Helper()
	ns, err := e.Kube.CoreV1().Namespaces().Create(e.ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	e.must(err)
	e.ns = ns.Name
	e.Cleanup(func() {
		if e.Failed() {
			e.Logf("evidence: %s", e.Collect(e.Name()))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		now := int64(0) // its pods' own wishes no longer matter
		_ = e.Kube.CoreV1().Pods(e.ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
			metav1.ListOptions{})
		_ = e.Kube.CoreV1().Namespaces().Delete(ctx, e.ns, metav1.DeleteOptions{})
	})
	e.must(e.ServiceAccount(e.soon(), e.ns))
}

// apply creates or changes the objects of a YAML text, in the test's namespace.
func (e *env) apply(text string) {
	e.Helper()
	e.must(e.tryApply(text))
}

func (e *env) tryApply(text string) error {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(e.Kube.Discovery()))
	dec := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var o unstructured.Unstructured
		if err := dec.Decode(&o.Object); err != nil {
			if err.Error() == "EOF" {
				return nil
			}
			return fmt.Errorf("read YAML of the test: %w", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		gvk := schema.FromAPIVersionAndKind(o.GetAPIVersion(), o.GetKind())
		m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return err
		}
		r := e.Dynamic.Resource(m.Resource)
		opts := metav1.ApplyOptions{FieldManager: "e2e", Force: true}
		if m.Scope.Name() == "namespace" {
			_, err = r.Namespace(e.ns).Apply(e.ctx, o.GetName(), &o, opts)
		} else {
			_, err = r.Apply(e.ctx, o.GetName(), &o, opts)
		}
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
}

// named selects one object in a watch.
func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
}

// labeled selects by labels.
func labeled(l string) metav1.ListOptions { return metav1.ListOptions{LabelSelector: l} }

// pod waits until cond holds for a pod.
func (e *env) pod(opts metav1.ListOptions, cond func(*corev1.Pod) (bool, string)) *corev1.Pod {
	e.Helper()
	p, err := cluster.Until(e.soon(), e.Kube.CoreV1().Pods(e.ns), opts, cond)
	if err != nil {
		e.Fatalf("pod %s%s: %v", opts.FieldSelector, opts.LabelSelector, err)
	}
	return p
}

func describe(p *corev1.Pod) string {
	s := fmt.Sprintf("%s %s %s", p.Name, p.Status.Phase, p.Status.Reason)
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		s += fmt.Sprintf("; %s ready=%v restarts=%d", c.Name, c.Ready, c.RestartCount)
		if w := c.State.Waiting; w != nil {
			s += " waiting: " + w.Reason + " " + w.Message
		}
		if x := c.State.Terminated; x != nil {
			s += fmt.Sprintf(" ended: %s %d", x.Reason, x.ExitCode)
		}
	}
	return s
}

func running(p *corev1.Pod) (bool, string) { return p.Status.Phase == corev1.PodRunning, describe(p) }

func isReady(p *corev1.Pod) (bool, string) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && p.DeletionTimestamp == nil {
			return c.Status == corev1.ConditionTrue, describe(p)
		}
	}
	return false, describe(p)
}

func ended(p *corev1.Pod) (bool, string) {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed, describe(p)
}

// kubectl runs umiak's kubectl in the test's namespace.
func (e *env) kubectl(args ...string) string {
	e.Helper()
	out, err := e.Kubectl(e.soon(), append([]string{"-n", e.ns}, args...)...)
	e.must(err)
	return strings.TrimSpace(out)
}

// logs returns what a container printed.
func (e *env) logs(pod, container string) string {
	e.Helper()
	raw, err := e.Kube.CoreV1().Pods(e.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(e.soon())
	e.must(err)
	return string(raw)
}

// in runs the app of the test image in a pod and returns what it printed.
func (e *env) in(pod string, args ...string) (string, error) {
	out, err := e.exec(e.soon(), pod, "", append([]string{"/bin/app"}, args...)...)
	return strings.TrimSpace(out), err
}

// becomes waits until a command in a pod prints what is wanted.
func (e *env) becomes(pod, want string, args ...string) {
	e.Helper()
	err := cluster.Eventually(e.soon(), func(context.Context) error {
		got, err := e.in(pod, args...)
		if err == nil && got != want {
			err = fmt.Errorf("got %q, want %q", got, want)
		}
		return err
	})
	if err != nil {
		e.Fatalf("app %s in %s: %v", strings.Join(args, " "), pod, err)
	}
}

// client is a pod to ask from.
func (e *env) client(name string) {
	e.Helper()
	e.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
`, name, name))
	e.pod(named(name), isReady)
}

// hostPath is a path of the machine as the test process can open it.
func (e *env) hostPath(p ...string) string { return e.M.Host(filepath.Join(p...)) }
