package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// Default sources of name servers.
const (
	etcFile = "/etc/resolv.conf"
	// resolvedFile has the upstream servers if /etc/resolv.conf names systemd-resolved's stub.
	resolvedFile = "/run/systemd/resolve/resolv.conf"
)

// Found holds the name servers of the host.
type Found struct {
	// Host are the servers that the host's programs can reach.
	Host []netip.Addr
	// Pods are the servers that pods can reach as well.
	Pods []netip.Addr
	// Remark says what is missing and what to do; "" if nothing is missing.
	Remark string

	raw []byte // the file of Pods, for its other lines
}

// Find reads the host's name servers. asked is the resolv.conf that the user has set, which replaces the defaults; ""
// if none is set.
func Find(asked string) Found { return find(asked, etcFile, resolvedFile) }

func find(asked, etc, behindStub string) Found {
	from := etc
	if asked != "" {
		from = asked
	}
	raw, err := os.ReadFile(from)
	all := nameservers(raw)
	f := Found{Host: all, Pods: usable(all), raw: raw}
	if asked == "" && len(f.Pods) == 0 {
		if real, err := os.ReadFile(behindStub); err == nil {
			if s := usable(nameservers(real)); len(s) > 0 {
				return Found{Host: s, Pods: s, raw: real}
			}
		}
	}
	switch {
	case len(f.Pods) > 0:
	case err != nil && (!errors.Is(err, fs.ErrNotExist) || asked != ""):
		f.Remark = fmt.Sprintf("cannot read name servers: %v", err)
	case len(all) > 0:
		f.Remark = fmt.Sprintf(
			"%s names no server that pods can reach: pods with dnsPolicy Default get the cluster's DNS, which forwards to it", from)
	default:
		f.Remark = from + " names no server: only cluster names are resolved until it does (or set resolv-conf)"
	}
	return f
}

// forPods is the resolv.conf of pods with dnsPolicy Default.
func (f Found) forPods(clusterDNS []netip.Addr) []byte {
	var out bytes.Buffer
	for l := range bytes.Lines(f.raw) {
		if a, ok := nameserver(string(l)); ok && !reachable(a) {
			continue
		}
		out.Write(l)
	}
	if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
		out.WriteByte('\n')
	}
	if len(f.Pods) == 0 {
		for _, a := range clusterDNS {
			fmt.Fprintf(&out, "nameserver %s\n", a)
		}
	}
	return out.Bytes()
}

// forHost is the file of the node's DNS.
func (f Found) forHost() []byte {
	var out bytes.Buffer
	for _, a := range f.Host {
		fmt.Fprintf(&out, "nameserver %s\n", a)
	}
	return out.Bytes()
}

// nameservers returns the addresses in a resolv.conf, see resolv.conf(5).
func nameservers(raw []byte) []netip.Addr {
	var out []netip.Addr
	for l := range bytes.Lines(raw) {
		if a, ok := nameserver(string(l)); ok {
			out = append(out, a)
		}
	}
	return out
}

func nameserver(line string) (netip.Addr, bool) {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != "nameserver" {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(f[1])
	return a, err == nil
}

// reachable reports whether an address means the same server in a pod as on the host.
func reachable(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() // 0.0.0.0 also means this host
}

func usable(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if reachable(a) {
			out = append(out, a)
		}
	}
	return out
}
