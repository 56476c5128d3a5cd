package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// rolledOut waits until all replicas of the newest generation are available and no other is left.
func (e *env) rolledOut(name string) *appsv1.Deployment {
	e.Helper()
	d, err := cluster.Until(e.soon(), e.Kube.AppsV1().Deployments(e.ns), named(name),
		func(d *appsv1.Deployment) (bool, string) {
			s, want := d.Status, *d.Spec.Replicas
			return s.ObservedGeneration == d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want &&
					s.Replicas == want,
				fmt.Sprintf("generation %d of %d, %d replicas, %d updated, %d available", s.ObservedGeneration,
					d.Generation, s.Replicas, s.UpdatedReplicas, s.AvailableReplicas)
		})
	if err != nil {
		e.Fatalf("deployment %s: %v", name, err)
	}
	return d
}

// images of the running pods with a label.
func (e *env) imagesOf(label string) string {
	e.Helper()
	l, err := e.Kube.CoreV1().Pods(e.ns).List(e.ctx, labeled(label))
	e.must(err)
	set := map[string]bool{}
	for _, p := range l.Items {
		if p.DeletionTimestamp == nil {
			set[p.Spec.Containers[0].Image] = true
		}
	}
	var out []string
	for i := range set {
		out = append(out, i)
	}
	return strings.Join(out, " ")
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: registry.test/app:1
        imagePullPolicy: IfNotPresent
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

func TestDeploymentRollsForwardAndBack(t *testing.T) {
	e := share(t)
	e.apply(deployment)
	e.rolledOut("web")
	e.kubectl("scale", "deployment", "web", "--replicas=3")
	e.rolledOut("web")
	e.kubectl("set", "image", "deployment/web", "c=registry.test/app:2")
	e.rolledOut("web")
	if got := e.imagesOf("app=web"); got != "registry.test/app:2" {
		t.Fatalf("after the update pods run %q", got)
	}
	e.kubectl("rollout", "undo", "deployment/web")
	e.rolledOut("web")
	if got := e.imagesOf("app=web"); got != "registry.test/app:1" {
		t.Fatalf("after the rollback pods run %q", got)
	}
	// An update that cannot work leaves the old pods in service.
	e.kubectl("set", "image", "deployment/web", "c=registry.test/none:1")
	bad := e.pod(labeled("app=web"), func(p *corev1.Pod) (bool, string) {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") {
				return true, ""
			}
		}
		return false, describe(p)
	})
	d, err := e.Kube.AppsV1().Deployments(e.ns).Get(e.ctx, "web", metav1.GetOptions{})
	e.must(err)
	if d.Status.AvailableReplicas < 2 {
		t.Fatalf("%d pods are left beside %s", d.Status.AvailableReplicas, bad.Name)
	}
}

func TestStatefulSetKeepsNamesAndOrder(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "registry.test/app:1", readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}}]
`)
	e.pod(named("db-0"), isReady)
	first := e.pod(named("db-0"), isReady)
	second := e.pod(named("db-1"), isReady)
	if second.CreationTimestamp.Before(&first.CreationTimestamp) {
		t.Error("db-1 was made before db-0")
	}
	e.becomes("db-0", "db-1 "+first.Status.PodIP, "get", "http://db-1.db:8080/")
	e.kubectl("delete", "pod", "db-0", "--wait=false")
	again := e.pod(named("db-0"), func(p *corev1.Pod) (bool, string) {
		ok, s := isReady(p)
		return ok && p.UID != first.UID, s
	})
	e.becomes("db-1", "db-0 "+second.Status.PodIP, "get", "http://db-0.db:8080/")
	if again.Name != "db-0" {
		t.Errorf("the new pod is %s", again.Name)
	}
}

func TestDaemonSetRunsOnTheNode(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every}
spec:
  selector: {matchLabels: {app: every}}
  template:
    metadata: {labels: {app: every}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "registry.test/app:1"}]
`)
	p := e.pod(labeled("app=every"), isReady)
	if p.Spec.NodeName != e.M.Name {
		t.Fatalf("runs on %q", p.Spec.NodeName)
	}
	_, err := cluster.Until(e.soon(), e.Kube.AppsV1().DaemonSets(e.ns), named("every"),
		func(d *appsv1.DaemonSet) (bool, string) {
			return d.Status.NumberReady == 1, fmt.Sprint(d.Status)
		})
	e.must(err)
}

func TestJobAndCronJobFinish(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: three}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "registry.test/app:1", command: [echo, done]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: fails}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "registry.test/app:1", args: [crash, "3"]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    metadata: {labels: {from: tick}}
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: c, image: "registry.test/app:1", command: [echo, tick]}]
`)
	jobs := e.Kube.BatchV1().Jobs(e.ns)
	cond := func(kind batchv1.JobConditionType) func(*batchv1.Job) (bool, string) {
		return func(j *batchv1.Job) (bool, string) {
			for _, c := range j.Status.Conditions {
				if c.Type == kind && c.Status == corev1.ConditionTrue {
					return true, ""
				}
			}
			return false, fmt.Sprintf("%d active, %d succeeded, %d failed", j.Status.Active, j.Status.Succeeded,
				j.Status.Failed)
		}
	}
	j, err := cluster.Until(e.soon(), jobs, named("three"), cond(batchv1.JobComplete))
	e.must(err)
	if j.Status.Succeeded != 3 {
		t.Errorf("%d of 3 succeeded", j.Status.Succeeded)
	}
	_, err = cluster.Until(e.soon(), jobs, named("fails"), cond(batchv1.JobFailed))
	e.must(err)
	p := e.pod(labeled("batch.kubernetes.io/job-name=fails"), ended)
	if code := p.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 3 {
		t.Errorf("exit code %d", code)
	}
	// The schedule's next minute is at most 60 s away, and the job takes a moment.
	_, err = cluster.Until(e.within(2*patience), jobs, labeled("from=tick"), cond(batchv1.JobComplete))
	e.must(err)
}

func TestInitAndSidecarContainersRunInOrder(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: first, image: "registry.test/app:1", command: [sh, -c, "echo first >> /v/log"], volumeMounts: [{name: v, mountPath: /v}]}
  - name: sidecar
    image: registry.test/app:1
    restartPolicy: Always
    command: [sh, -c, "echo sidecar >> /v/log; exec app signals /v/sidecar-ended"]
    startupProbe: {exec: {command: [grep, sidecar, /v/log]}, periodSeconds: 1}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: last, image: "registry.test/app:1", command: [sh, -c, "echo last >> /v/log"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: "registry.test/app:1", command: [sh, -c, "echo main >> /v/log; cat /v/log; ! test -e /v/sidecar-ended"], volumeMounts: [{name: v, mountPath: /v}]}
`)
	p := e.pod(named("order"), ended)
	if p.Status.Phase != corev1.PodSucceeded {
		t.Fatal(describe(p))
	}
	if got := e.logs("order", "main"); got != "first\nsidecar\nlast\nmain\n" {
		t.Errorf("order was %q", got)
	}
	if got := e.logs("order", "sidecar"); !strings.Contains(got, "got terminated") {
		t.Errorf("the sidecar was not asked to end: %q", got)
	}
}

func TestProbesDecide(t *testing.T) {
	e := share(t)
	// Each server is ready, or alive, while a file exists in it.
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: http}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "registry.test/app:1", readinessProbe: {httpGet: {path: /if/tmp/ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: tcp}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "registry.test/app:1", command: [sh, -c, "until [ -e /tmp/ready ]; do sleep 0.1; done; exec app serve"], readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: grpc}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "registry.test/app:1", args: [grpc], readinessProbe: {grpc: {port: 8082}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: exec}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: registry.test/app:1
    startupProbe: {exec: {command: [test, -e, /bin/app]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [sh, -c, "! test -e /tmp/dead"]}, periodSeconds: 1, failureThreshold: 1}
`)
	for name, file := range map[string]string{"http": "/tmp/ready", "tcp": "/tmp/ready", "grpc": "/tmp/serving"} {
		e.pod(named(name), func(p *corev1.Pod) (bool, string) { // started, probed, and found not ready
			ok, s := running(p)
			r, _ := isReady(p)
			return ok && !r, s
		})
		_, err := e.exec(e.soon(), name, "", "touch", file)
		e.must(err)
		e.pod(named(name), isReady)
	}
	_, err := e.exec(e.soon(), "http", "", "rm", "/tmp/ready")
	e.must(err)
	e.pod(named("http"), func(p *corev1.Pod) (bool, string) { r, s := isReady(p); return !r, s })

	e.pod(named("exec"), isReady)
	_, err = e.exec(e.soon(), "exec", "", "touch", "/tmp/dead")
	e.must(err)
	e.pod(named("exec"), func(p *corev1.Pod) (bool, string) {
		r, s := isReady(p)
		return r && p.Status.ContainerStatuses[0].RestartCount == 1, s
	})
}

func TestLifecycleHooksRun(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hooks}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: v, hostPath: {path: /var/lib/hooks, type: DirectoryOrCreate}}]
  containers:
  - name: c
    image: registry.test/app:1
    args: [signals, /v/term]
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started > /v/post"]}}
      preStop: {exec: {command: [sh, -c, "test ! -e /v/term && echo stopping > /v/pre"]}}
`)
	e.pod(named("hooks"), isReady)
	e.must(e.Kube.CoreV1().Pods(e.ns).Delete(e.ctx, "hooks", metav1.DeleteOptions{}))
	e.gonePod("hooks")
	for file, want := range map[string]string{"post": "started\n", "pre": "stopping\n", "term": "terminated"} {
		if got := e.read("/var/lib/hooks", file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func (e *env) gonePod(name string) {
	e.Helper()
	pods := e.Kube.CoreV1().Pods(e.ns)
	e.must(cluster.Gone(e.soon(), pods, name, func(ctx context.Context) error {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		return err
	}))
}

func TestOOMKillIsSeenAsOne(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: registry.test/app:1
    args: [hog, "512"]
    resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 32Mi, cpu: 10m}}
`)
	p := e.pod(named("hog"), ended)
	x := p.Status.ContainerStatuses[0].State.Terminated
	if x == nil || x.Reason != "OOMKilled" || x.ExitCode != 137 {
		t.Fatalf("%s: %+v", describe(p), x)
	}
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("QoS class %s", p.Status.QOSClass)
	}
}

func TestCrashingContainerIsRestartedWithBackoff(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: "registry.test/app:1", args: [crash, "7"]}]
`)
	p := e.pod(named("crash"), func(p *corev1.Pod) (bool, string) {
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount >= 1 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" {
				return true, ""
			}
		}
		return false, describe(p)
	})
	if x := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; x == nil || x.ExitCode != 7 {
		t.Errorf("last end: %+v", x)
	}
	_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Events(e.ns),
		metav1.ListOptions{FieldSelector: "involvedObject.name=crash,reason=BackOff"},
		func(*corev1.Event) (bool, string) { return true, "" })
	e.must(err)
}
