package httpproxy

import (
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// marker separates the user's part of NO_PROXY from the part that Exempt adds, also for a process that has inherited
// the variable. No host has this name.
const marker = "umiak-internal.invalid"

// everyAddress matches all targets that are given as an IP address, which is how the parts of a cluster reach each
// other. A list of ranges would not do, since the addresses of future nodes are unknown.
var everyAddress = []string{"localhost", "0.0.0.0/0", "::/0"}

// Exempt makes the process connect without a proxy to targets given as an IP address, and to the host names and
// .domains in also. Call it before the first request of the process. Further calls replace the names.
func Exempt(also ...string) error {
	add := marker + "," + strings.Join(append(everyAddress, also...), ",")
	if user := userPart(noProxy()); user != "" {
		add = user + "," + add
	}
	// Libraries differ in which of the two variables they read first.
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		if err := os.Setenv(name, add); err != nil {
			return err
		}
	}
	return nil
}

func noProxy() string {
	if v := os.Getenv("NO_PROXY"); v != "" {
		return v
	}
	return os.Getenv("no_proxy")
}

// userPart returns the part of NO_PROXY that Exempt has not added.
func userPart(noProxy string) string {
	user, _, _ := strings.Cut(noProxy, marker)
	return strings.Trim(user, ", ")
}

// Environ returns the environment of the process without what Exempt has added, for programs that store it.
func Environ() []string {
	var out []string
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); name == "NO_PROXY" || name == "no_proxy" {
			if value = userPart(value); value == "" {
				continue
			}
			v = name + "=" + value
		}
		out = append(out, v)
	}
	return out
}

// Proxy returns a function for http.Transport.Proxy, for targets outside the cluster. It follows the user's settings,
// without what Exempt has added.
func Proxy() func(*http.Request) (*url.URL, error) {
	c := httpproxy.FromEnvironment()
	c.NoProxy = userPart(c.NoProxy)
	f := c.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return f(r.URL) }
}
