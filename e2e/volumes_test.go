package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// read returns a file of the machine.
func (e *env) read(p ...string) string {
	e.Helper()
	raw, err := os.ReadFile(e.hostPath(filepath.Join(p...)))
	e.must(err)
	return string(raw)
}

func TestVolumes(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {color: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: vols, labels: {part: one}, annotations: {note: hello}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: cm, configMap: {name: cm}}
  - {name: sec, secret: {secretName: sec, defaultMode: 0400}}
  - {name: empty, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: host, hostPath: {path: /var/lib/host-volume, type: DirectoryOrCreate}}
  - name: all
    projected:
      sources:
      - configMap: {name: cm, items: [{key: shape, path: config/shape}]}
      - secret: {name: sec, items: [{key: word, path: secret/word}]}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}
      - serviceAccountToken: {path: token, audience: test, expirationSeconds: 600}
  containers:
  - name: c
    image: registry.test/app:1
    resources: {limits: {cpu: 250m, memory: 64Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: cm, key: color}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: sec, key: word}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    envFrom: [{configMapRef: {name: cm}, prefix: CM_}]
    volumeMounts:
    - {name: cm, mountPath: /cm}
    - {name: cm, mountPath: /one/color, subPath: color}
    - {name: sec, mountPath: /sec, readOnly: true}
    - {name: empty, mountPath: /empty}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host}
    - {name: all, mountPath: /all}
`)
	p := e.pod(named("vols"), isReady)
	sh := func(script string) string {
		t.Helper()
		out, err := e.exec(e.soon(), "vols", "c", "sh", "-c", script)
		e.must(err)
		return strings.TrimSpace(out)
	}
	for script, want := range map[string]string{
		"cat /cm/color /one/color":                  "redred",
		"cat /sec/word; stat -L -c ' %a' /sec/word": "sesame 400",
		"echo $COLOR $WORD $NOTE $CM_shape $IP": "red sesame hello round " +
			p.Status.PodIP,
		"cat /all/config/shape /all/secret/word /all/cpu": "roundsesame250",
		"cat /all/labels":                                                         `part="one"`,
		"test -s /all/token && echo yes":                                          "yes",
		"echo x > /empty/f && cat /empty/f":                                       "x",
		"grep -c ' /mem tmpfs' /proc/mounts":                                      "1",
		"echo from-pod > /host/f && cat /host/f":                                  "from-pod",
		"echo x > /cm/new 2>/dev/null || echo read-only":                          "read-only",
		"cat /proc/1/cgroup >/dev/null && ls /cm | xargs":                         "color shape",
		"test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo yes": "yes",
	} {
		if got := sh(script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	if got := e.read("/var/lib/host-volume/f"); got != "from-pod\n" {
		t.Errorf("host sees %q", got)
	}
	// A change reaches the volume without a restart. An annotation makes the kubelet look at once instead
	// of at its next minute.
	e.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: cm}, data: {color: blue, shape: round}}")
	e.apply("{apiVersion: v1, kind: Secret, metadata: {name: sec}, stringData: {word: changed}}")
	e.kubectl("annotate", "pod", "vols", "look=now")
	e.becomes("vols", "blue", "get", "http://127.0.0.1:8080/file/cm/color")
	e.becomes("vols", "changed", "get", "http://127.0.0.1:8080/file/all/secret/word")
	e.kubectl("label", "pod", "vols", "part=two", "--overwrite")
	e.becomes("vols", `part="two"`, "get", "http://127.0.0.1:8080/file/all/labels")
	now, err := e.Kube.CoreV1().Pods(e.ns).Get(e.ctx, "vols", getOptions)
	e.must(err)
	if n := now.Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("%d restarts", n)
	}
}

func TestSecurityContextHolds(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: sc}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: registry.test/app:1
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: v, mountPath: /v}]
`)
	e.pod(named("sc"), isReady)
	out, err := e.exec(e.soon(), "sc", "", "sh", "-c",
		"id -u; id -g; touch /x 2>/dev/null || echo read-only; touch /v/f && stat -c %g /v/f; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | xargs")
	e.must(err)
	want := "1234\n2345\nread-only\n3456\nCapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2\n"
	if out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
