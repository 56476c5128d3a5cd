package containerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestDefaultRuntime: pods run with the program that default-runtime names. It is runc here, by another name.
func TestDefaultRuntime(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bin := t.TempDir()
	calls := filepath.Join(bin, "calls")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", calls, n.cfg.Programs.Runc)
	if err := os.WriteFile(filepath.Join(bin, "youki"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	n.cfg.Runtime = "youki"
	n.start()
	c := n.client()
	n.putArchive("box.tar")
	eventually.True(t, "the archive is imported", func() bool { return c.hasImage(ctx, testImage) != nil })
	sandbox, box := n.pod(ctx, c, "host", cri.NamespaceMode_NODE)
	raw, err := os.ReadFile(calls)
	if err != nil || !strings.Contains(string(raw), "start "+sandbox) || !strings.Contains(string(raw), "start "+box) {
		t.Errorf("%v: %s", err, raw)
	}
}

func TestRuntimesThatAreMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for name, want := range map[string]string{"": "", "runc": "", "youki": "there is no youki on PATH", "x": "no runtime"} {
		path, err := containerd.FindRuntime(name)
		if path != "" || (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", name, path, err)
		}
	}
}
