package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRegistrySettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if got := registrySettings(t.Context(), Config{Registries: path}); len(got) != 0 {
		t.Errorf("without a file: %v", got)
	}
	for text, want := range map[string]struct {
		state  State
		detail string
	}{
		"mirrors: {docker.io: {endpoint: [mirror.local]}}": {OK, "mirrors for 1 registries"},
		"mirrors: {docker.io/library: {}, quay.io: []}":    {Missing, "is not a registry"},
		"configs: {a: {tls: {ca_file: /nowhere.pem}}}":     {Warn, "/nowhere.pem"},
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := registrySettings(t.Context(), Config{Registries: path})
		if len(got) != 1 || got[0].State != want.state || !strings.Contains(got[0].Detail, want.detail) ||
			strings.Contains(got[0].Detail, "\n") {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "secrets") // the test's own folder is 0700
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "registries.yaml")
	const secret, none = "configs: {a: {auth: {username: u, password: p}}}", "mirrors: {docker.io: {endpoint: [mirror.local]}}"
	for _, c := range []struct {
		text string
		mode os.FileMode
		want int
	}{{secret, 0o644, 2}, {secret, 0o600, 1}, {none, 0o644, 1}} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		got := secretFiles(t.Context(), Config{Registries: path,
			Exposed: []string{"/etc/x holds a secret: chmod 600 /etc/x"}})
		if len(got) != c.want || got[0].State != Warn || got[0].Fix != "chmod 600 /etc/x" {
			t.Errorf("%s, %o: %+v", c.text, c.mode, got)
		}
	}
}

func TestWhatDoesNothingAmongTheSettingsIsAWarning(t *testing.T) {
	got := unusedSettings(t.Context(), Config{Remarks: []string{"UMIAK_NOD_NAME in the environment does nothing"}})
	if len(got) != 1 || got[0].State != Warn || !Fit(got) ||
		got[0].Detail != "UMIAK_NOD_NAME in the environment does nothing" {
		t.Errorf("%+v", got)
	}
}
