package kubectl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

func TestFindsTheServerOfThisMachine(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for args, want := range map[string]bool{
		"get pods": true, "": true, "--kubeconfig x get pods": false, "get pods --kubeconfig=x": false,
		"-s https://x get pods": false, "--server=https://x get pods": false, "get pods -n s": true,
		"-shttps://x get pods": false, "exec p -- curl -s http://x": true, "run p --image=i -- prog --server=foo": true,
		"exec -i p -- sh -s": true, "exec p --kubeconfig=x -- sh -s": false, "exec p -- x --kubeconfig y": true,
	} {
		if got := findsServer(ownArgs(strings.Fields(args))); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "server", "admin.kubeconfig")
	home := clientcmd.RecommendedHomeFile
	clientcmd.RecommendedHomeFile = filepath.Join(dir, "none")
	defer func() { clientcmd.RecommendedHomeFile = home }()
	for args, fine := range map[string]bool{"get pods": false, "apply -f x": false, "version --client": true,
		"help": true, "": true, "create ns x --dry-run=client -o yaml": true, "config view": true, "get --help": true,
		"version": false, "exec p -- prog --help": false} {
		err := useAdmin(file, ownArgs(strings.Fields(args)))
		if (err == nil) != fine || err != nil &&
			(!strings.Contains(err.Error(), "no server has run here: there is no server/admin.kubeconfig in "+dir) ||
				!strings.Contains(err.Error(), "KUBECONFIG")) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if os.Getenv("KUBECONFIG") != "" {
		t.Error("KUBECONFIG is set")
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := useAdmin(file, []string{"get", "pods"}); err != nil || os.Getenv("KUBECONFIG") != file ||
		findsServer([]string{"get"}) {
		t.Errorf("%v, %s", err, os.Getenv("KUBECONFIG"))
	}
}

func TestAServerThatDoesNotRun(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	t.Setenv("KUBECONFIG", d.AdminKubeconfig())
	get := []string{"get", "pods"}
	if err := checkRunning(d, get); err == nil || !strings.Contains(err.Error(), "systemctl start umiak") {
		t.Errorf("no process has the data directory: %v", err)
	}
	if err := checkRunning(d, []string{"version", "--client"}); err != nil {
		t.Errorf("a command that needs no server: %v", err)
	}
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkRunning(d, get); err != nil {
		t.Errorf("it runs: %v", err)
	}
	release()
	t.Setenv("KUBECONFIG", "/home/u/.kube/config")
	if err := checkRunning(d, get); err != nil {
		t.Errorf("another kubeconfig: %v", err)
	}
}

func TestTheDefaultServerIsRefused(t *testing.T) {
	t.Setenv("KUBERNETES_MASTER", "")
	c := refuseDefaultServer(&rest.Config{Host: clientcmd.ClusterDefaults.Server})
	if c.Dial == nil {
		t.Fatal("it would ask localhost:8080")
	}
	if _, err := c.Dial(t.Context(), "tcp", "localhost:8080"); err == nil ||
		!strings.Contains(err.Error(), "no server is known here") {
		t.Errorf("got %v", err)
	}
	for name, c := range map[string]struct {
		kubeconfig, server string
		want               bool
	}{
		"nothing": {},
		"a kubeconfig that is": {kubeconfig: "clusters: [{name: a, cluster: {server: 'http://localhost:8080'}}]",
			want: true},
		"one without a server": {kubeconfig: "clusters: []"},
		"a flag":               {server: "http://localhost:8080", want: true},
	} {
		file := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Config\n"+c.kubeconfig+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("KUBECONFIG", file)
		flags := genericclioptions.NewConfigFlags(true)
		flags.APIServer = &c.server
		if got := namesServer(flags, clientcmd.ClusterDefaults.Server); got != c.want {
			t.Errorf("%s: named %v", name, got)
		}
	}
	if c := refuseDefaultServer(&rest.Config{Host: "https://10.0.0.1:6443"}); c.Dial != nil {
		t.Error("a server that was named is not asked")
	}
}
