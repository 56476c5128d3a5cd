package logging_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/klog/v2"

	"github.com/umiak-io/umiak/internal/logging"
)

// TestVerbosityOfKubernetes covers both kinds of loggers in Kubernetes: klog's functions and contextual ones.
func TestVerbosityOfKubernetes(t *testing.T) {
	for _, c := range []struct {
		verbosity int
		modules   []string
		want      string
		not       string
	}{
		{0, nil, "", "f1 c1 f2 c2 f3 c3"},
		{2, nil, "f1 c1 f2 c2", "f3 c3"},
		{0, []string{"verbosity_*=1", "other=9"}, "f1 c1", "f2 c2 f3 c3"},
		{1, []string{"verbosity_test=2"}, "f1 c1 f2 c2", "f3 c3"},
		{1, []string{"other=9"}, "f1 c1", "f2 c2 f3 c3"},
	} {
		var b bytes.Buffer
		own, _, err := logging.Setup(logging.Config{Level: "info", Format: "text", Verbosity: c.verbosity,
			Modules: c.modules}, &b)
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range []string{"1", "2", "3"} {
			klog.V(klog.Level(i + 1)).InfoS("f" + text)
			klog.FromContext(t.Context()).V(i + 1).Info("c" + text)
		}
		own.Debug("of umiak")
		for word := range strings.FieldsSeq(c.want) {
			if !strings.Contains(b.String(), "level=DEBUG msg="+word) {
				t.Errorf("v %d, vmodule %v: no %s in\n%s", c.verbosity, c.modules, word, b.String())
			}
		}
		for word := range strings.FieldsSeq(c.not + " umiak") {
			if strings.Contains(b.String(), "msg="+word) {
				t.Errorf("v %d, vmodule %v: %s in\n%s", c.verbosity, c.modules, word, b.String())
			}
		}
	}
	var b bytes.Buffer
	own, _, err := logging.Setup(logging.Config{Level: "warn", Format: "text", Verbosity: 8}, &b)
	if err != nil {
		t.Fatal(err)
	}
	own.Debug("all")
	if s := b.String(); !strings.Contains(s, "Secrets") || !strings.Contains(s, "msg=all") {
		t.Error(s)
	}
	if _, _, err := logging.Setup(logging.Config{Level: "info", Format: "text"}, &b); err != nil { // klog is global
		t.Fatal(err)
	}
}

// TestLogFile: the file gets what standard error gets, and is begun again where it was moved away.
func TestLogFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "folder", "umiak.log")
	var b bytes.Buffer
	own, _, err := logging.Setup(logging.Config{Level: "info", Format: "text", File: file}, &b)
	if err != nil {
		t.Fatal(err)
	}
	own.Info("one")
	if err := os.Rename(file, file+".moved"); err != nil {
		t.Fatal(err)
	}
	own.Info("two")
	for name, want := range map[string]string{file: "msg=two", file + ".moved": "msg=one"} {
		raw, err := os.ReadFile(name)
		if err != nil || strings.Count(string(raw), "msg=") != 1 || !strings.Contains(string(raw), want) {
			t.Errorf("%s: %v, %q", name, err, raw)
		}
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
			t.Error(err, st.Mode())
		}
	}
	if s := b.String(); strings.Count(s, "msg=") != 2 {
		t.Error(s)
	}
}

// TestMistakesInLogSettings also reports two mistakes at once.
func TestMistakesInLogSettings(t *testing.T) {
	c := logging.Config{Level: "info", Format: "text", File: "umiak.log", Verbosity: -1,
		Modules: []string{"kubelet*=4", "kubelet", "[=3", "a=many"}}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`log: "umiak.log" is not`, "v: -1 is not", `"kubelet" is not`, `"[=3" is not`,
		`"a=many" is not`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
	if strings.Contains(err.Error(), `"kubelet*=4" is not`) {
		t.Error(err)
	}
}
