package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

// upstreamCrictl builds upstream's crictl, as its own makefile does, and returns the file.
func upstreamCrictl(t *testing.T) string {
	t.Helper()
	root, err := cluster.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, ".cache", "bin", "crictl")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", file, "sigs.k8s.io/cri-tools/cmd/crictl")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build upstream's crictl: %v\n%s", err, out)
	}
	return file
}

// TestCrictl runs the same commands with umiak's crictl and with upstream's, on one pod of one node.
func TestCrictl(t *testing.T) {
	e := share(t)
	upstream := upstreamCrictl(t)
	e.apply(fmt.Sprintf(withPolicy, "seen", images.App1, "IfNotPresent"))
	e.pod(named("seen"), isReady)
	// As install.sh makes it: the binary goes by the name under which it is called.
	link := filepath.Join(e.M.Dir, "home", "crictl")
	e.must(os.Symlink(filepath.Join(e.M.Bin(), "umiak"), link))
	ours := func(ctx context.Context, args ...string) (string, error) { return e.M.Run(ctx, link, args...) }
	theirs := func(ctx context.Context, args ...string) (string, error) {
		return e.M.Run(ctx, upstream, append([]string{"--runtime-endpoint",
			"unix://" + cluster.Dirs().ContainerdSocket()}, args...)...)
	}
	one := func(args ...string) string {
		t.Helper()
		out, err := ours(e.soon(), args...)
		if err != nil || len(strings.Fields(out)) != 1 {
			t.Fatalf("crictl %v: %q, %v", args, out, err)
		}
		return strings.TrimSpace(out)
	}
	pod := one("pods", "-q", "--namespace", e.ns, "--name", "seen")
	container := one("ps", "-q", "--pod", pod)

	for _, args := range [][]string{
		{"ps", "-a", "--pod", pod, "-o", "json"}, {"pods", "--id", pod, "-o", "json"},
		{"images", "-o", "json", images.App1}, {"inspect", container}, {"inspectp", pod}, {"inspecti", images.App1},
		{"stats", "-o", "json", container}, {"statsp", "-o", "json", "--id", pod}, {"imagefsinfo"}, {"info"},
	} {
		err := cluster.Eventually(e.soon(), func(ctx context.Context) error { // stats gain fields with time
			got, err := fields(ours(ctx, args...))
			if err != nil {
				return err
			}
			want, err := fields(theirs(ctx, args...))
			if err != nil {
				return fmt.Errorf("upstream: %w", err)
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("umiak's: %v\nupstream's: %v", got, want)
			}
			return nil
		})
		if err != nil {
			t.Errorf("crictl %s: %v", strings.Join(args, " "), err)
		}
	}
	for _, args := range [][]string{{"version"}, {"runtime-config"}, {"logs", container}, {"ps", "-q", "--pod", pod},
		{"exec", container, "/app", "nonsense"},
		{"inspect", "-o", "yaml", container}, {"--version"}, {"inspect", "none"}, {"rmi", "none"}} {
		got, err := ours(e.soon(), args...)
		want, wantErr := theirs(e.soon(), args...)
		if (err == nil) != (wantErr == nil) || args[0] != "--version" && got != want {
			t.Errorf("crictl %s: %q, %v\nupstream's: %q, %v", strings.Join(args, " "), got, err, want, wantErr)
		}
	}
	if out, err := e.Umiak(e.soon(), "crictl", "ps", "--pod", pod); err != nil || !strings.Contains(out, container[:13]) {
		t.Errorf("umiak crictl ps: %q, %v", out, err)
	}
	if _, err := ours(e.soon(), "rmp", "-f", pod); err != nil {
		t.Error(err)
	}
}

// fields returns the paths of all fields of a JSON text that a command printed.
func fields(text string, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return nil, fmt.Errorf("%w: %.200s", err, text)
	}
	set := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		set[path] = true
		switch v := v.(type) {
		case map[string]any:
			for k, f := range v {
				walk(path+"."+k, f)
			}
		case []any:
			for _, f := range v {
				walk(path+"[]", f)
			}
		}
	}
	walk("", v)
	if len(set) < 2 {
		return nil, fmt.Errorf("it has no fields: %.200s", text)
	}
	return slices.Sorted(maps.Keys(set)), nil
}
