package external

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// mysqlAddress matches the network and address in a data source name, NET(ADDRESS).
var mysqlAddress = regexp.MustCompile(`(\w+)\(([^)]*)\)/`)

// Unprotected returns why the connection to a database on another machine is not protected by verified TLS, so that an
// attacker on the network could read or change the data. It returns "" if the connection is protected or local.
func Unprotected(endpoint string, tls TLS) string {
	scheme, rest, _ := strings.Cut(endpoint, "://")
	switch kinds[scheme] {
	case "etcd":
		for e := range strings.SplitSeq(endpoint, ",") {
			if u, err := url.Parse(e); err == nil && u.Scheme == "http" && !local(u.Hostname()) {
				return "the connection is not encrypted (http://)"
			}
		}
	case "PostgreSQL":
		u, err := url.Parse(endpoint)
		if err != nil {
			return ""
		}
		q := u.Query()
		hosts := strings.Split(u.Host, ",")
		if h := q.Get("host"); h != "" {
			hosts = strings.Split(h, ",")
		}
		mode := q.Get("sslmode")
		if mode == "" && tls != (TLS{}) {
			mode = "verify-full"
		}
		verified := mode == "verify-full" || mode == "verify-ca" || mode == "require" &&
			(tls.CAFile != "" || q.Get("sslrootcert") != "")
		if !verified && slices.ContainsFunc(hosts, func(h string) bool { return !local(hostOf(h)) }) {
			return "its certificate is not verified, or the connection is not encrypted (sslmode)"
		}
	case "MySQL":
		m := mysqlAddress.FindStringSubmatch(rest[strings.LastIndexByte(rest, '@')+1:])
		_, query, _ := strings.Cut(rest[strings.LastIndexByte(rest, '/')+1:], "?")
		q, _ := url.ParseQuery(query)
		if m != nil && m[1] != "unix" && !local(hostOf(m[2])) && tls == (TLS{}) &&
			!strings.EqualFold(q.Get("tls"), "true") {
			return "its certificate is not verified, or the connection is not encrypted (tls)"
		}
	case "NATS":
		if u, err := url.Parse(endpoint); err == nil && tls.CAFile == "" && !local(u.Hostname()) {
			return "its certificate is not verified, or the connection is not encrypted"
		}
	}
	return ""
}

// hostOf returns the host of HOST or HOST:PORT.
func hostOf(s string) string {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.String()
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		s = s[:i]
	}
	return strings.Trim(s, "[]")
}

// local reports whether a host is this machine. A path, that of a unix socket, is.
func local(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || host == "localhost" || strings.HasPrefix(host, "/") || err == nil && a.IsLoopback()
}
