package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

// obstacle is something in a machine's surroundings that a node cannot do without, or does not expect.
//
// A row of TestHostileSurroundings starts a node on such a machine: the API answers, `umiak status` and `umiak check`
// say what is wrong, and when the obstacle goes, everything becomes ready in the same process.
type obstacle struct {
	name     string // of the test and, as far as it is one, of the machine
	settings map[string]string
	env      []string // for umiak
	host     string   // the machine's name; default name
	images   []string // that pods of then run; default none
	// arrange puts the obstacle in place, on a machine that is on and where umiak does not run.
	arrange func(e *env)
	// says are words that `umiak status` prints while the obstacle is there, all in one line; none where nothing is in
	// the way in the end: then everything becomes ready with it.
	says []string
	// check are words of one line of `umiak check`, run beforehand; none where it has nothing to say.
	check []string
	// remove takes the obstacle away. It is needed where says is set.
	remove func(e *env)
	// with is what the node can do nevertheless, while the obstacle is there.
	with func(e *env)
	// then is what it can do in the end.
	then func(e *env)
}

// hostile are at most this many nodes at once: they start beside each other on few cores.
var hostile = make(chan struct{}, 2)

func TestHostileSurroundings(t *testing.T) {
	for _, o := range obstacles() {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			hostile <- struct{}{}
			t.Cleanup(func() { <-hostile })
			o.run(t)
		})
	}
}

func (o obstacle) run(t *testing.T) {
	host := o.host
	if host == "" {
		host = strings.ToLower(strings.ReplaceAll(o.name, " ", "-"))
	}
	e := off(t, cluster.Options{Name: host, Settings: o.settings, Env: o.env, Images: append([]string{}, o.images...)})
	if o.arrange != nil {
		o.arrange(e)
	}
	if len(o.check) > 0 {
		out, err := e.Umiak(e.soon(), "check")
		if l := lineWith(out, o.check); l == "" || strings.HasPrefix(l, "OK") {
			t.Errorf("check does not say %q: %v\n%s", o.check, err, out)
		}
	}
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	pid := e.PID()
	if len(o.says) > 0 {
		e.statusSays(o.says...)
		if o.with != nil {
			o.with(e)
		}
		o.remove(e)
	}
	e.allReady()
	e.must(e.NodeReady(e.soon()))
	if e.PID() != pid {
		t.Errorf("process %d became %d", pid, e.PID())
	}
	if len(o.says) > 0 {
		e.hasEvent("PartFailed", o.says[0], o.says[len(o.says)-1])
		e.hasEvent("PartWorksAgain", o.says[0])
	}
	if o.then != nil {
		o.then(e)
	}
}

// lineWith is the first line that has all the words.
func lineWith(text string, words []string) string {
next:
	for l := range strings.Lines(text) {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue next
			}
		}
		return l
	}
	return ""
}

// statusSays waits until a line of `umiak status` has all the words.
func (e *env) statusSays(words ...string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status")
		if lineWith(out, words) == "" {
			return fmt.Errorf("no line of status has %q: %w\n%s", words, err, out)
		}
		if err == nil {
			return fmt.Errorf("status ends with 0\n%s", out)
		}
		return nil
	}))
}

// allReady waits until every part is ready by `umiak status`, in the process that was started.
func (e *env) allReady() {
	e.Helper()
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status", "-o", "json")
		var r struct {
			Ready    bool
			Sections []struct {
				Name string
				Rows []struct{ Name, State, Detail string }
			}
		}
		if e := json.Unmarshal([]byte(out), &r); e != nil {
			return fmt.Errorf("%w: %w", err, e)
		}
		for _, s := range r.Sections {
			if s.Name == "Restarted" && len(s.Rows) > 0 {
				return fmt.Errorf("it was restarted: %v", s.Rows)
			}
			for _, row := range s.Rows {
				if s.Name == "Parts" && row.State != "ready" {
					err = fmt.Errorf("%s %s: %s", row.Name, row.State, row.Detail)
				}
			}
		}
		if !r.Ready && err == nil {
			err = fmt.Errorf("not ready: %s", out)
		}
		return err
	}))
}

// hasEvent waits for an Event of the Node that has all the words.
func (e *env) hasEvent(reason string, words ...string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		l, err := e.Kube.CoreV1().Events("default").List(ctx,
			metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,reason=" + reason})
		if err != nil {
			return err
		}
		var all []string
		for _, ev := range l.Items {
			if lineWith(ev.Message, words) != "" {
				return nil
			}
			all = append(all, ev.Message)
		}
		return fmt.Errorf("no Event %s with %q: %q", reason, words, all)
	}))
}

// hold has a program of the machine listen on a port, and returns what ends it.
func (e *env) hold(port string) (release func()) {
	e.Helper()
	cmd := e.M.Command(e.Context(), "busybox", "nc", "-ll", "-p", port, "-e", "/bin/true")
	e.must(e.M.Start(cmd))
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		c, err := e.M.Dial(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
	done := false
	release = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	e.Cleanup(release)
	return release
}

// held is the row of a port that a program of the host has.
func held(port, part string) obstacle {
	var release func()
	return obstacle{
		name: "port " + port + " held", check: []string{"port " + port, "busybox"},
		says:    []string{part, "retrying", port, "busybox"},
		arrange: func(e *env) { release = e.hold(port) }, remove: func(*env) { release() },
	}
}

// sh runs a script in the machine.
func (e *env) sh(script string) {
	e.Helper()
	_, err := e.M.Run(e.soon(), "sh", "-euc", script)
	e.must(err)
}

// dev gives the machine a /dev of its own with these devices; the host's is at /run/olddev.
func (e *env) dev(names string) {
	e.Helper()
	e.sh(`mkdir /run/olddev /run/dev
mount --rbind /dev /run/olddev
mount -t tmpfs -o mode=755 tmpfs /run/dev
cd /run/olddev
for n in ` + names + `; do [ ! -e $n ] || cp -a $n /run/dev/; done
for d in pts shm mqueue; do [ ! -d $d ] || { mkdir /run/dev/$d; mount --rbind $d /run/dev/$d; }; done
ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev`)
}

// obstacles are the rows. Each has a machine of its own.
func obstacles() []obstacle {
	return append(netObstacles(), []obstacle{
		held("10250", "kubelet"),
		held("5001", "sharing"),
		oddDataDir("data-dir a link, no shared mounts", "linked",
			"cd /var/lib; mkdir disk; mv umiak disk/data 2>/dev/null || mkdir disk/data; ln -s disk/data umiak; mount --make-rprivate /"),
		oddDataDir("data-dir a mount", "mounted",
			"mkdir -p /var/lib/umiak; mount --bind /var/lib/umiak /var/lib/umiak"),
		{
			name: "no kmsg", check: []string{"kernel log", "kmsg"}, says: []string{"kubelet", "retrying", "/dev/kmsg"},
			arrange: func(e *env) { e.dev("null zero full random urandom tty fuse ptmx") },
			remove:  func(e *env) { e.sh("touch /dev/kmsg; mount --bind /run/olddev/kmsg /dev/kmsg") },
		},
		{
			name: "no hosts file", check: []string{"hosts file", "/etc/hosts"},
			says:    []string{"machine", "retrying", "/etc/hosts"},
			arrange: func(e *env) { e.sh("rm /etc/hosts") },
			remove:  func(e *env) { e.sh("echo 127.0.0.1 localhost >/etc/hosts") },
		},
		{name: "etc read-only", arrange: func(e *env) { e.sh("mount -o remount,ro /etc") }},
		{
			name: "data-dir noexec", check: []string{"programs", "noexec"},
			says: []string{"containerd", "retrying", "noexec"},
			arrange: func(e *env) {
				e.sh("mkdir -p /var/lib/umiak; mount --bind /var/lib/umiak /var/lib/umiak; mount -o remount,bind,noexec /var/lib/umiak")
			},
			remove: func(e *env) { e.sh("mount -o remount,bind,exec /var/lib/umiak") },
		},
		{
			name: "disk full", says: []string{"containerd", "retrying", "full"},
			arrange: func(e *env) {
				// The disk of what a node has besides the datastore: a server whose datastore cannot write is not
				// ready.
				e.sh("mkdir -p /var/lib/umiak/agent; mount -t tmpfs -o size=400m tmpfs /var/lib/umiak/agent")
				e.must(e.Start())
				e.allReady()
				e.must(e.Stop(e.within(patience)))
				e.sh("dd if=/dev/zero of=/var/lib/umiak/agent/filler bs=64k 2>/dev/null || :")
			},
			remove: func(e *env) { e.sh("rm /var/lib/umiak/agent/filler") },
		},
		// On hybrid cgroup v1 the kubelet wants its root in the named hierarchy too.
		{name: "cgroup-root", settings: map[string]string{"cgroup-root": "/hostile"}},
		{
			name: "data-dir a mount with a mount in it",
			arrange: func(e *env) {
				e.sh("d=/var/lib/umiak; mkdir -p $d; mount --bind $d $d; mkdir -p $d/agent/containerd; mount --bind $d/agent/containerd $d/agent/containerd")
			},
		},
		{
			name: "container without devices and sysctls", host: "container",
			check: []string{"forwarding", "ip_forward", "read-only"}, says: []string{"join", "retrying", "ip_forward"},
			arrange: func(e *env) {
				e.dev("null zero full random urandom tty fuse ptmx")
				e.sh("echo 0 >/proc/sys/net/ipv4/ip_forward; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys")
			},
			// What the host of a container can do for it. Then the kubelet waits for the kernel's log.
			remove: func(e *env) {
				e.sh("mount -o remount,bind,rw /proc/sys; echo 1 >/proc/sys/net/ipv4/ip_forward; mount -o remount,bind,ro /proc/sys")
				e.statusSays("kubelet", "retrying", "/dev/kmsg")
				e.sh("touch /dev/kmsg; mount --bind /run/olddev/kmsg /dev/kmsg")
			},
		},
	}...)
}

// TestHostileAgent: an agent whose port for the servers is held names the holder, and joins when it is free.
func TestHostileAgent(t *testing.T) {
	t.Parallel()
	l := lan(t)
	e := own(t, cluster.Options{Name: "sv", LAN: l, Images: []string{}})
	e.must(e.APIReady(e.soon()))
	a := &env{T: t, Cluster: e.agentOn(l, "ag", map[string]string{"server": e.url(), "token": e.token()}), ctx: e.ctx}
	release := a.hold("6444")
	out, _ := a.Umiak(a.soon(), "check", "--agent-only")
	if lineWith(out, []string{"MISSING", "port 6444", "busybox"}) == "" {
		t.Errorf("check: %s", out)
	}
	a.must(a.Start())
	a.statusSays("servers", "retrying", "6444", "busybox")
	release()
	e.nodeReady("ag", a.Cluster)
}

// TestCheckInAnUnprivilegedContainer: check tries what it claims.
func TestCheckInAnUnprivilegedContainer(t *testing.T) {
	t.Parallel()
	e := off(t, cluster.Options{Name: "userns", Images: []string{}})
	out, err := e.M.Run(e.soon(), "unshare", "--user", "--map-root-user", "--mount", "--net", "--cgroup", "sh", "-euc",
		"mount --rbind /sys /sys; for m in /sys/fs/cgroup/*; do mount -o remount,bind,ro $m || :; done; exec umiak check")
	if err == nil {
		t.Error("check ends with 0")
	}
	for _, words := range [][]string{{"WARN", "user namespace"}, {"MISSING", "cgroups"}} {
		if lineWith(out, words) == "" {
			t.Errorf("check does not say %q: %v\n%s", words, err, out)
		}
	}
}

// refuseAll is a webhook on every write whose Service has no endpoint, and a policy that refuses every ConfigMap.
const refuseAll = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-configmaps}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [configmaps]}]}
  validations: [{expression: "false"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-configmaps}
spec: {policyName: no-configmaps, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: hook}
webhooks:
- name: hook.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 5
  clientConfig: {service: {namespace: default, name: hook}}
  rules: [{apiGroups: ["*"], apiVersions: ["*"], operations: ["*"], resources: ["*/*"]}]
`

// TestADeadWebhookOnEverything: a single server whose every write is refused starts after a power cut, its pods run
// again, status names the webhook, and with it gone everything is ready in the same process.
func TestADeadWebhookOnEverything(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "refused", Images: []string{images.App1}}).ready()
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  automountServiceAccountToken: false
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
`)
	e.pod(named("web"), isReady)
	e.allReady()
	// A role that has lost its rules is written again at each start.
	e.kubectl("patch", "clusterrole", "system:basic-user", "--type=merge", "-p", `{"rules":[]}`)
	e.apply(refuseAll)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "asked"}}
		_, err := e.Kube.CoreV1().Namespaces().Create(ctx, n, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "hook.example.com") {
			return fmt.Errorf("the webhook is not asked yet: %w", err)
		}
		return nil
	}))
	e.must(e.M.PowerOff())
	<-e.Exited()
	e.must(e.M.Boot())
	e.must(e.Start())
	e.must(e.APIReady(e.within(2 * patience)))
	pid := e.PID()
	e.must(cluster.Eventually(e.within(2*patience), func(context.Context) error {
		for _, p := range e.M.Processes() {
			if strings.Contains(strings.Join(p.Args, " "), "/bin/app") {
				return nil
			}
		}
		return fmt.Errorf("the pod of before does not run\n%s", e.LogTail(10))
	}))
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, _ := e.Umiak(ctx, "status")
		if lineWith(out, []string{"hook.example.com", "refuses all", "default/hook"}) == "" {
			return fmt.Errorf("status does not name the webhook:\n%s", out)
		}
		return nil
	}))
	e.must(e.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(e.soon(), "hook",
		metav1.DeleteOptions{}))
	// Controllers that got no token have ended the controller manager, and with it, once or more, the process.
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	e.pod(named("web"), isReady)
	if e.PID() != pid {
		t.Errorf("process %d became %d", pid, e.PID())
	}
}

// TestKubeletThatEnds: what can start only once a process and ends has the process execute itself anew, again and
// again with longer pauses, with the same pid; the API is there in between, and status says why.
func TestKubeletThatEnds(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "ends", Images: []string{},
		Settings: map[string]string{"kubelet-arg": "reserved-cpus=500"}})
	e.must(e.APIReady(e.soon()))
	pid := e.PID()
	e.statusSays("ago", "because kubelet:", "reserved", "2 times in a row")
	e.statusSays("kubelet", "retrying", "reserved")
	e.must(e.APIReady(e.soon()))
	if e.PID() != pid {
		t.Errorf("process %d became %d", pid, e.PID())
	}
	e.must(e.Stop(e.soon()))
}
