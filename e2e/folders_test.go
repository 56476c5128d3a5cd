package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// TestFoldersThatTheWorldExpects runs a pod with what CSI drivers and log collectors mount.
func TestFoldersThatTheWorldExpects(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: driver}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: plugins, hostPath: {path: /var/lib/kubelet/plugins/e2e, type: DirectoryOrCreate}}
  - {name: registry, hostPath: {path: /var/lib/kubelet/plugins_registry, type: Directory}}
  - {name: devices, hostPath: {path: /var/lib/kubelet/device-plugins, type: Directory}}
  - {name: pods, hostPath: {path: /var/lib/kubelet/pods, type: Directory}}
  - {name: log, hostPath: {path: /var/log}}
  containers:
  - name: c
    image: registry.test/app:1
    imagePullPolicy: Never
    securityContext: {privileged: true}
    volumeMounts:
    - {name: plugins, mountPath: /csi}
    - {name: registry, mountPath: /registration}
    - {name: devices, mountPath: /device-plugins}
    - {name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}
    - {name: log, mountPath: /var/log, readOnly: true}
`)
	uid := string(e.pod(named("driver"), isReady).UID)
	sh := func(script string) string {
		e.Helper()
		out, err := e.exec(e.soon(), "driver", "", "sh", "-euc", script)
		e.must(err)
		return strings.TrimSpace(out)
	}
	// A volume that a driver mounts is seen by the kubelet and by other pods, and once only.
	at := "/var/lib/kubelet/pods/" + uid + "/volumes/e2e"
	sh("mkdir -p " + at + "; mount -t tmpfs e2e " + at + "; echo hi >" + at + "/file")
	e.must(e.M.Do(func() error {
		raw, err := os.ReadFile("/proc/1/mountinfo")
		if n := strings.Count(string(raw), "/volumes/e2e "); err == nil && n != 1 {
			err = fmt.Errorf("the volume is mounted %d times", n)
		}
		_, err2 := os.Stat(at + "/file")
		return errors.Join(err, err2)
	}))
	sh("umount " + at + "; rmdir " + at)
	if !strings.Contains(sh("ls /device-plugins"), "kubelet.sock") {
		t.Error("device plugins find no kubelet")
	}
	// What a log collector reads: a link that leads to a file in the pod, too.
	if got := sh("cat /var/log/containers/driver_" + e.ns + "_c-*.log"); !strings.Contains(got, "stdout F serving") {
		t.Errorf("log: %q", got)
	}
	e.sub("MetricsHaveNames", func(e *env) {
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			node := e.M.Name
			raw, err := e.Kube.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + node +
				"/proxy/metrics/cadvisor").DoRaw(ctx)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(raw)) {
				if strings.HasPrefix(line, "container_memory_working_set_bytes{container=\"c\"") &&
					strings.Contains(line, `image="registry.test/app:1"`) &&
					strings.Contains(line, `namespace="`+e.ns+`"`) && strings.Contains(line, `pod="driver"`) &&
					!strings.Contains(line, `name=""`) {
					return nil
				}
			}
			return errors.New("no metric with container, image, name, namespace and pod")
		}))
	})
}

// oddDataDir is the row of a data directory that is no plain folder. What the machine has of umiak's can be taken
// away there, too, and nothing of what is the user's.
func oddDataDir(name, host, arrange string) obstacle {
	const precious = "/var/lib/umiak/server/snapshots/precious"
	return obstacle{
		name: name, host: host,
		arrange: func(e *env) {
			e.sh(arrange + "\nmkdir -p " + filepath.Dir(precious) + "; mount -t tmpfs share " + filepath.Dir(precious) +
				"; echo mine >" + precious)
			// Another kubelet's folder stops the start, with one sentence.
			e.sh("mkdir /var/lib/kubelet; echo >/var/lib/kubelet/config.yaml")
			for _, cmd := range []string{"server", "check"} {
				if out, err := e.Umiak(e.soon(), cmd); err == nil ||
					!strings.Contains(out+err.Error(),
						"/var/lib/kubelet is another kubelet's folder (there is /var/lib/kubelet/config.yaml)") {
					e.Errorf("%s beside another kubelet: %v\n%s", cmd, err, out)
				}
			}
			e.sh("rm -r /var/lib/kubelet")
		},
		then: func(e *env) {
			e.must(e.Stop(e.soon()))
			out, err := e.Umiak(e.soon(), "cleanup", "--purge")
			e.must(err)
			left, err := e.M.Run(e.soon(), "sh", "-euc",
				"cd /var/lib/umiak; find . ! -type d; cut -d' ' -f5 /proc/1/mountinfo | grep kubelet || :")
			e.must(err)
			if strings.TrimSpace(left) != "./server/snapshots/precious" {
				e.Errorf("cleanup --purge left %s\n%s", left, out)
			}
		},
	}
}
