package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSELinux(t *testing.T) {
	for _, c := range []struct {
		enforce, label string
		want           string // in the error, "" for none
	}{
		{"", "", ""},
		{"0", "system_u:system_r:unconfined_service_t:s0", ""},
		{"1", "system_u:system_r:container_runtime_t:s0", ""},
		{"1", "system_u:system_r:container_runtime_t:s0-s0:c0.c1023\x00", ""},
		{"1\n", "system_u:system_r:unconfined_service_t:s0\x00", "umiak runs as system_u:system_r:unconfined_service_t:s0 instead"},
		{"1", "kernel", "install the policy container-selinux"},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"enforce": c.enforce, "current": c.label} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := trySELinux(dir, filepath.Join(dir, "current"))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %q: %v", c.enforce, c.label, err)
		}
	}
}
