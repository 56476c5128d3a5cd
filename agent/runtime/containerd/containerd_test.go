package containerd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

const testImage = "docker.io/library/box:1"

// putArchive puts a docker archive into the node's folder of images, in one step.
func (n *node) putArchive(file string) {
	n.t.Helper()
	dir := n.cfg.Dirs.Images()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	tag := must(name.NewTag("box:1"))
	tmp := filepath.Join(dir, ".making")
	if err := errors.Join(tarball.WriteToFile(tmp, tag, busybox(n.t)),
		os.Rename(tmp, filepath.Join(dir, file))); err != nil {
		n.t.Fatal(err)
	}
}

func (c client) hasImage(ctx context.Context, image string) *cri.Image {
	r, err := c.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		return nil
	}
	return r.Image
}

// pod starts a pod with one busybox in it and returns sandbox and container.
func (n *node) pod(ctx context.Context, c client, name string, network cri.NamespaceMode) (string, string) {
	n.t.Helper()
	oom := int64(-997)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		LogDirectory: filepath.Join(n.cfg.Dirs.PodLogs(), name),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + n.cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER}}},
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		n.t.Fatal(err)
	}
	sb, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.t.Fatalf("run sandbox: %v", err)
	}
	ctr, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sb.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "box"}, Image: &cri.ImageSpec{Image: testImage}, LogPath: "box.log",
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{OomScoreAdj: oom, MemoryLimitInBytes: 64 << 20},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: network,
					Pid: cri.NamespaceMode_CONTAINER},
					Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}}},
		}})
	if err != nil {
		n.t.Fatalf("create container: %v", err)
	}
	if _, err := c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ctr.ContainerId}); err != nil {
		n.t.Fatalf("start container: %v", err)
	}
	return sb.PodSandboxId, ctr.ContainerId
}

func (n *node) pid(ctx context.Context, c client, id string) int {
	n.t.Helper()
	r, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	if r.Status.State != cri.ContainerState_CONTAINER_RUNNING {
		n.t.Fatalf("container is %v", r.Status)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		n.t.Fatalf("%v: %s", err, r.Info["info"])
	}
	return info.Pid
}

func (n *node) exec(ctx context.Context, c client, id string, cmd ...string) string {
	n.t.Helper()
	r, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 10})
	if err != nil || r.ExitCode != 0 {
		n.t.Fatalf("exec %v: %v %s%s", cmd, err, r.GetStdout(), r.GetStderr())
	}
	return string(r.Stdout)
}

// What a node lives through: an image that is dropped into the folder, containers, kill -9, a restart.
func TestContainersOutliveContainerd(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := os.MkdirAll(n.cfg.Dirs.CNIConfig(), 0o700); err != nil {
		t.Fatal(err)
	}
	cni := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.89.0.0/24"}]]}},
		{"type":"bandwidth","capabilities":{"bandwidth":true}}]}`, n.cfg.Dirs.CNIState())
	if err := os.WriteFile(filepath.Join(n.cfg.Dirs.CNIConfig(), "10-test.conflist"), []byte(cni), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("first start: ready after %s", n.start())
	c := n.client()

	st, err := c.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cond := range st.Status.Conditions {
		if !cond.Status {
			t.Errorf("%s: %s", cond.Type, cond.Message)
		}
	}
	if img := c.hasImage(ctx, "umiak.io/pause:1"); img == nil || !img.Pinned {
		t.Fatalf("pause image: %v", img)
	}
	if img := c.hasImage(ctx, testImage); img != nil {
		t.Fatal("there is an image already")
	}
	n.putArchive("box.tar")
	eventually.True(t, "the archive is imported", func() bool { return c.hasImage(ctx, testImage) != nil })
	if !c.hasImage(ctx, testImage).Pinned {
		t.Error("the imported image is not pinned")
	}

	hostPod, hostBox := n.pod(ctx, c, "host", cri.NamespaceMode_NODE)
	_, netBox := n.pod(ctx, c, "net", cri.NamespaceMode_POD)
	if out := n.exec(ctx, c, netBox, "/bin/ip", "addr"); !strings.Contains(out, "10.89.0.") ||
		!strings.Contains(out, "127.0.0.1/8") {
		t.Errorf("addresses of the pod: %s", out)
	}
	before := []int{n.pid(ctx, c, hostBox), n.pid(ctx, c, netBox)}

	n.stop(syscall.SIGKILL)
	for _, pid := range before {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("container %d did not outlive containerd: %v", pid, err)
		}
	}
	t.Logf("start after kill -9: ready after %s", n.start())
	if img := c.hasImage(ctx, testImage); img == nil || !img.Pinned {
		t.Errorf("the image after a restart: %v", img)
	}
	for i, id := range []string{hostBox, netBox} {
		if pid := n.pid(ctx, c, id); pid != before[i] {
			t.Errorf("the container's process was %d and is %d", before[i], pid)
		}
		if out := n.exec(ctx, c, id, "/bin/busybox", "echo", "hello"); out != "hello\n" {
			t.Errorf("exec after the restart: %q", out)
		}
	}
	log, err := os.ReadFile(n.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(log), `msg="importing images"`); got != 1 {
		t.Errorf("the archive was imported %d times", got)
	}

	// The folder is what decides: an archive that goes takes its pins along.
	if err := os.Remove(filepath.Join(n.cfg.Dirs.Images(), "box.tar")); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the image is unpinned", func() bool {
		i := c.hasImage(ctx, testImage)
		return i != nil &&
			!i.Pinned
	})

	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: hostPod}); err != nil {
		t.Error(err)
	}
	if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: hostPod}); err != nil {
		t.Error(err)
	}
	// Nothing outside the node's own directories.
	for _, p := range []string{"/run/containerd/s", "/run/containerd/runc", "/var/run/nri", "/opt/containerd"} {
		if used, _ := filepath.Glob(p + "/*" + filepath.Base(n.cfg.Dirs.Run) + "*"); len(used) > 0 {
			t.Errorf("%v", used)
		}
	}
	for _, s := range []string{n.cfg.Dirs.ContainerdSocket(), n.cfg.Dirs.ContainerdSocket() + ".ttrpc"} {
		if st, err := os.Stat(s); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", s, st, err)
		}
	}
	last, took := n.stop(syscall.SIGTERM)
	t.Logf("stopped after %s with %s left", took, last)
	if took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if _, err := os.Stat(n.cfg.Dirs.ContainerdSocket()); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := syscall.Kill(before[1], 0); err != nil {
		t.Errorf("a stop ended the container: %v", err)
	}
}
