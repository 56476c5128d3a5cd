package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

var getOptions = metav1.GetOptions{}

func TestLogsExecAttachCopy(t *testing.T) {
	e := share(t)
	e.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talk}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "registry.test/app:1", stdin: true, command: [sh, -c, "echo begin; while read line; do echo heard $line; done; sleep 1000"]}
`)
	e.pod(named("talk"), isReady)
	// Exec through client-go (WebSocket) and through kubectl, with stdin and exit codes.
	if out, err := e.execInput(e.soon(), strings.NewReader("abc"), "talk", "c", "cat"); err != nil || out != "abc" {
		t.Errorf("exec cat: %q, %v", out, err)
	}
	if out := e.kubectl("exec", "talk", "--", "hostname"); out != "talk" {
		t.Errorf("kubectl exec: %q", out)
	}
	if _, err := e.Kubectl(e.soon(), "-n", e.ns, "exec", "talk", "--", "sh", "-c", "exit 5"); err == nil ||
		!strings.Contains(err.Error(), "exit status 5") {
		t.Errorf("exit code: %v", err)
	}
	// Attach reaches the stdin of the container's own process, and its words come back.
	ctx, cancel := context.WithCancel(e.soon())
	defer cancel()
	cmd := e.M.Command(ctx, "umiak", "kubectl", "-n", e.ns, "attach", "-i", "talk")
	in, err := cmd.StdinPipe()
	e.must(err)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	e.must(e.M.Start(cmd))
	_, err = io.WriteString(in, "you\n")
	e.must(err)
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if !strings.Contains(out.String(), "heard you") {
			return fmt.Errorf("attach printed %q", out.String())
		}
		return nil
	}))
	cancel()
	_ = cmd.Wait()
	// Logs, also followed, from a time, and the last lines only.
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		if got := e.kubectl("logs", "talk"); got != "begin\nheard you" {
			return fmt.Errorf("logs: %q", got)
		}
		return nil
	}))
	if got := e.kubectl("logs", "talk", "--tail=1"); got != "heard you" {
		t.Errorf("logs --tail=1: %q", got)
	}
	follow, err := e.Kube.CoreV1().Pods(e.ns).GetLogs("talk", &corev1.PodLogOptions{Follow: true}).Stream(e.soon())
	e.must(err)
	buf := make([]byte, 5)
	if _, err := io.ReadFull(follow, buf); err != nil || string(buf) != "begin" {
		t.Errorf("follow: %q, %v", buf, err)
	}
	_ = follow.Close()
	// Copy there and back, a megabyte that would not survive being taken for text.
	blob := bytes.Repeat([]byte{0, 1, 2, 0xff, '\n', '\r', 0x1b}, 150_000)
	local := filepath.Join(e.M.Dir, "tmp", e.ns)
	e.must(os.WriteFile(local, blob, 0o600))
	e.kubectl("cp", local, "talk:/tmp/blob")
	e.kubectl("cp", "talk:/tmp/blob", local+".back")
	back, err := os.ReadFile(local + ".back")
	e.must(err)
	if !bytes.Equal(blob, back) {
		t.Errorf("copied %d bytes, got %d back, not alike", len(blob), len(back))
	}
}

func TestPortForward(t *testing.T) {
	e := share(t)
	e.client("pf")
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	// A container runs a moment before its program listens, and the first refusal ends a forwarding.
	e.must(cluster.Eventually(e.soon(), func(context.Context) error {
		addr, err := e.forward(ctx, "pf", 8080)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + addr + "/")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err == nil && !strings.HasPrefix(string(body), "pf ") {
			err = fmt.Errorf("client-go: %q", body)
		}
		return err
	}))
	// kubectl listens inside the machine.
	cmd := e.M.Command(ctx, "umiak", "kubectl", "-n", e.ns, "port-forward", "pod/pf", ":8081")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	e.must(e.M.Start(cmd))
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		_, rest, ok := strings.Cut(out.String(), "Forwarding from ")
		if !ok {
			return fmt.Errorf("kubectl port-forward printed %q", out.String())
		}
		c, err := e.M.Dial(ctx, "tcp", strings.Fields(rest)[0])
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		line := make([]byte, 3)
		if _, err := io.ReadFull(c, line); err != nil || string(line) != "pf " {
			return fmt.Errorf("through kubectl: %q, %w", line, err)
		}
		return nil
	}))
	cancel()
	_ = cmd.Wait()
}

func TestEventsTellTheStory(t *testing.T) {
	e := share(t)
	e.client("story")
	for _, reason := range []string{"Scheduled", "Created", "Started"} {
		_, err := cluster.Until(e.soon(), e.Kube.CoreV1().Events(e.ns),
			metav1.ListOptions{FieldSelector: "involvedObject.name=story,reason=" + reason},
			func(*corev1.Event) (bool, string) { return true, "" })
		if err != nil {
			t.Errorf("%s: %v", reason, err)
		}
	}
}

func TestKubectlAndStatusWork(t *testing.T) {
	e := share(t)
	if out := e.kubectl("get", "nodes", "-o",
		"jsonpath={.items[*].status.nodeInfo.kubeletVersion}"); !strings.HasPrefix(out, "v1.37.2+umiak") &&
		!strings.HasPrefix(out, "v1.37.2") {
		t.Errorf("kubelet version %q", out)
	}
	out, err := e.Umiak(e.soon(), "status", "-o", "json")
	e.must(err)
	if !strings.Contains(out, `"ready": true`) {
		t.Errorf("status: %s", out)
	}
	out, err = e.Umiak(e.soon(), "images", "list")
	e.must(err)
	if !strings.Contains(out, "registry.test/app:1") {
		t.Errorf("images: %s", out)
	}
}

// lockedBuffer takes a command's output while a test looks at it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
