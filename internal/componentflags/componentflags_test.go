package componentflags

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestSet(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	pods, name, verbose := fs.Int("max-pods", 1, ""), fs.String("node-name", "", ""), fs.Bool("verbose", false, "")
	port := fs.Int("port", 0, "")
	refused := func(name, value string) string {
		if name == "port" && value != "0" {
			return "set kubelet-port"
		}
		return ""
	}
	if err := Set(fs, "k-arg", []string{"--max_pods=20", "node-name=a=b,c", "--verbose", "port=0"},
		refused); err != nil {
		t.Fatal(err)
	}
	if *pods != 20 || *name != "a=b,c" || !*verbose || *port != 0 {
		t.Error(*pods, *name, *verbose, *port)
	}
	err := Set(fs, "k-arg", []string{"max-pod=3", "max-pods=many", "max-pods", "=x", "port=1", "nonsense=1", "--"},
		refused)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`k-arg: there is no flag "max-pod"; did you mean max-pods?`,
		`k-arg: invalid argument "many" for "--max-pods" flag`, "k-arg: max-pods needs a value: max-pods=VALUE",
		`k-arg: "=x" is not NAME=VALUE`, "k-arg: port cannot be set: set kubelet-port",
		`k-arg: there is no flag "nonsense"`, `k-arg: "--" is not NAME=VALUE`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
}

func TestLogRemarks(t *testing.T) {
	got := LogRemarks("kubelet-arg", []string{"--v=4", "max-pods=1", "alsologtostderr", "vmodule=a=1"})
	if len(got) != 1 || got[0] != "kubelet-arg: alsologtostderr has no effect: the log goes to standard error" {
		t.Errorf("%q", got)
	}
}

func TestGiven(t *testing.T) {
	args := []string{"--oidc-issuer-url=https://x", "v=1", "allow_metric_labels=x"}
	for name, want := range map[string]bool{"oidc-*": true, "v": true, "oidc": false, "anonymous-auth": false,
		"allow-metric-labels": true} {
		if Given(args, name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
