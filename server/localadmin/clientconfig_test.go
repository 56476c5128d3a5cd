package localadmin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
)

// TestClientConfig: a kubeconfig of the user's comes first, a list of them is none, and each error names the remedy.
func TestClientConfig(t *testing.T) {
	write := func(file, host string) string {
		t.Helper()
		text := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: '" + host +
			"'}}]\ncontexts: [{name: a, context: {cluster: a}}]\n"
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	d := layout.Dirs{Data: t.TempDir()}
	if _, err := ClientConfig(d, "", "test"); err == nil ||
		!strings.HasPrefix(err.Error(), d.AdminKubeconfig()+" is not there: run this on a server") {
		t.Errorf("without a kubeconfig: %v", err)
	}
	write(d.AdminKubeconfig(), "https://this-machine:6443")
	users := write(filepath.Join(t.TempDir(), "config"), "https://another:6443")
	for kubeconfig, want := range map[string]string{
		"": "https://this-machine:6443", users: "https://another:6443", users + ":" + users: "https://this-machine:6443",
	} {
		rc, err := ClientConfig(d, kubeconfig, "test")
		if err != nil || rc.Host != want || !strings.HasSuffix(rc.UserAgent, "/test") {
			t.Errorf("%q: %+v, %v", kubeconfig, rc, err)
		}
	}
	if err := os.WriteFile(users, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ClientConfig(d, users, "test"); err == nil || !strings.Contains(err.Error(), "set KUBECONFIG") {
		t.Errorf("a file that is no kubeconfig: %v", err)
	}
}
