package httpproxy

import (
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// marker stands before what Exempt adds to NO_PROXY: no host has this name, and by it the user's part is found again,
// also by a process that has inherited the variable.
const marker = "umiak-internal.invalid"

// everyAddress are the targets that are given as an address: that is how the parts of a cluster reach each other. A
// list of ranges would not do, since nodes come with addresses that nobody knows beforehand.
var everyAddress = []string{"localhost", "0.0.0.0/0", "::/0"}

// Exempt keeps the process's connections to targets given as an address, and to the host names and .domains in also,
// from any proxy. Call it before the process makes its first request; it may be called again.
func Exempt(also ...string) error {
	add := marker + "," + strings.Join(append(everyAddress, also...), ",")
	if own := users(noProxy()); own != "" {
		add = own + "," + add
	}
	// Libraries look at one or the other first.
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

// users is the part of a NO_PROXY that Exempt has not added.
func users(noProxy string) string {
	own, _, _ := strings.Cut(noProxy, marker)
	return strings.Trim(own, ", ")
}

// Environ returns the process's environment without what Exempt has added: for programs that keep what they are given.
func Environ() []string {
	var out []string
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); name == "NO_PROXY" || name == "no_proxy" {
			if value = users(value); value == "" {
				continue
			}
			v = name + "=" + value
		}
		out = append(out, v)
	}
	return out
}

// Proxy returns what http.Transport.Proxy is to be for targets outside the cluster: the user's settings, without what
// Exempt has added.
func Proxy() func(*http.Request) (*url.URL, error) {
	c := httpproxy.FromEnvironment()
	c.NoProxy = users(c.NoProxy)
	f := c.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return f(r.URL) }
}
