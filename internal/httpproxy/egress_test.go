package httpproxy_test

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/umiak-io/umiak/internal/httpproxy"
)

// TestExempt calls the libraries' own functions in a process of its own, since they read the environment once.
func TestExempt(t *testing.T) {
	if os.Getenv("EGRESS_TEST_CHILD") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestExempt$")
		cmd.Env = append(os.Environ(), "EGRESS_TEST_CHILD=1", "HTTPS_PROXY=http://proxy.example:3128",
			"http_proxy=http://proxy.example:3128", "NO_PROXY=own.example,198.51.100.0/24")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for range 2 { // as after the process has executed itself again
		if err := httpproxy.Exempt(".svc", ".cluster.local", "db.example"); err != nil {
			t.Fatal(err)
		}
	}
	if got := os.Getenv("NO_PROXY"); strings.Count(got, "0.0.0.0/0") != 1 ||
		!strings.HasPrefix(got, "own.example,198.51.100.0/24,") {
		t.Error(got)
	}
	request := func(target string) *http.Request {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		return &http.Request{URL: u}
	}
	old := utilnet.SetOldTransportDefaults(&http.Transport{})
	choosers := map[string]func(*http.Request) (*url.URL, error){"net/http": http.ProxyFromEnvironment,
		"apimachinery": old.Proxy}
	for _, c := range []struct {
		target             string
		cluster, elsewhere bool // whether a connection uses the proxy
	}{
		{"https://10.43.0.1:443/", false, true},
		{"https://203.0.113.7:10250/pods", false, true}, // a kubelet with an address that nobody knew beforehand
		{"https://[2001:db8::7]:10250/", false, true},
		{"https://127.0.0.1:6443/", false, false},
		{"https://hook.default.svc:443/validate", false, true},
		{"https://api.default.svc.cluster.local/", false, true},
		{"https://db.example:2379/", false, true},
		{"https://own.example/", false, false},
		{"https://198.51.100.9:5000/v2/", false, false},
		{"https://registry.example/v2/", true, true},
		{"http://mirror.example/v2/", true, true},
		{"https://issuer.example/.well-known/openid-configuration", true, true},
	} {
		r := request(c.target)
		for name, f := range choosers {
			if p, err := f(r); (p != nil) != c.cluster || err != nil {
				t.Errorf("%s sends %s to proxy %v, %v", name, c.target, p, err)
			}
		}
		if p, err := httpproxy.Proxy()(r); (p != nil) != c.elsewhere || err != nil {
			t.Errorf("Proxy sends %s to proxy %v, %v", c.target, p, err)
		}
	}
}
