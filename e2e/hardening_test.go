package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// TestHardening: what docs/hardening.md says is on without a flag, and the modes of files.
func TestHardening(t *testing.T) {
	e := share(t)
	var k struct {
		SeccompDefault  bool     `json:"seccompDefault"`
		PodPidsLimit    int      `json:"podPidsLimit"`
		TLSCipherSuites []string `json:"tlsCipherSuites"`
		TLSMinVersion   string   `json:"tlsMinVersion"`
		ReadOnlyPort    int      `json:"readOnlyPort"`
	}
	e.kubeletConfig(&k)
	if !k.SeccompDefault || k.PodPidsLimit != 4096 || len(k.TLSCipherSuites) == 0 ||
		k.TLSMinVersion != "VersionTLS12" || k.ReadOnlyPort != 0 {
		t.Errorf("kubelet: %+v", k)
	}
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
---
apiVersion: v1
kind: Pod
metadata: {name: unconfined}
spec:
  securityContext: {seccompProfile: {type: Unconfined}}
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
`)
	for pod, want := range map[string]string{"plain": "2", "unconfined": "0"} { // seccomp(2): a filter, none
		e.pod(named(pod), isReady)
		if out, err := e.exec(e.soon(), pod, "c", "grep", "Seccomp:", "/proc/1/status"); err != nil ||
			strings.TrimSpace(strings.TrimPrefix(out, "Seccomp:")) != want {
			t.Errorf("%s: %q, %v, want %s", pod, out, err, want)
		}
	}
	dirs := cluster.Dirs()
	audit := e.hostPath(dirs.Server(), "audit", "audit.log")
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		raw, err := os.ReadFile(audit)
		if err == nil && (!strings.Contains(string(raw), `"exec"`) ||
			!strings.Contains(string(raw), `"name":"plain"`)) {
			err = errors.New("it does not have who entered which pod")
		}
		return err
	}))
	// The administrator's rights are not those that cannot be revoked.
	var rev struct {
		Status struct {
			UserInfo struct {
				Groups []string `json:"groups"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	e.must(json.Unmarshal([]byte(e.kubectl("auth", "whoami", "-o", "json")), &rev))
	if g := fmt.Sprint(rev.Status.UserInfo.Groups); strings.Contains(g, "system:masters") ||
		!strings.Contains(g, "umiak:admins") {
		t.Errorf("the administrator's groups: %s", g)
	}
	for _, dir := range []string{dirs.Server(), filepath.Join(dirs.Agent(), "pki"),
		filepath.Join(dirs.Agent(), "cni")} {
		root := e.hostPath(dir)
		e.must(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			st, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil // replaced meanwhile
			}
			// Certificates and public keys alone are for everybody's eyes.
			if err == nil && st.Mode().Perm()&0o077 != 0 && filepath.Ext(path) != ".crt" &&
				filepath.Ext(path) != ".pub" {
				t.Errorf("%s has mode %o", strings.TrimPrefix(path, root), st.Mode().Perm())
			}
			return err
		}))
	}
}
