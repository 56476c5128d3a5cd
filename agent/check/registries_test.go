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
		"mirrors: {docker.io/library: {}, quay.io: []}":    {Missing, "is more than a registry"},
		"configs: {a: {tls: {ca_file: /nowhere.pem}}}":     {Warn, "/nowhere.pem"},
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := registrySettings(t.Context(), Config{Registries: path})
		if len(got) != 1 || got[0].State != want.state || !strings.Contains(got[0].Detail, want.detail) || strings.Contains(got[0].Detail, "\n") {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
