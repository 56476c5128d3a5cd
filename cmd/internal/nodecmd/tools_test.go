package nodecmd

import (
	"strings"
	"testing"
)

func TestCalledAs(t *testing.T) {
	for line, want := range map[string]string{
		"umiak status":                      "umiak status",
		"/usr/local/bin/umiak kubectl":      "/usr/local/bin/umiak kubectl",
		"/usr/local/bin/ctr images list":    "umiak ctr images list",
		"crictl":                            "umiak crictl",
		"./crictl ps -a":                    "umiak crictl ps -a",
		"/usr/local/bin/kubectl get nodes ": "/usr/local/bin/kubectl get nodes", // not in this program
	} {
		if got := strings.Join(CalledAs("umiak", strings.Fields(line), "crictl", "ctr"), " "); got != want {
			t.Errorf("%s runs %q, want %q", line, got, want)
		}
	}
}
