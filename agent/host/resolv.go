package host

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Resolv is where the host's real name servers stand.
type Resolv struct {
	// Path is a resolv.conf that a pod can use as it is: it names no loopback address.
	Path string
	// Servers are the addresses in it.
	Servers []netip.Addr
	// Remark is for the log: what had to be done, or what will not work.
	Remark string
}

// FindResolv looks for a resolv.conf that is of use in a pod, where a loopback name server is the pod's
// own and not the host's. asked is the user's choice and wins. runDir takes a copy without the loopback
// servers where there is no better file.
func FindResolv(asked, runDir string) (Resolv, error) {
	return findResolv(asked, runDir, "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
}

func findResolv(asked, runDir, etc, behindStub string) (Resolv, error) {
	if asked != "" {
		raw, err := os.ReadFile(asked)
		if err != nil {
			return Resolv{}, fmt.Errorf("resolv-conf: %w", err)
		}
		servers := nameservers(raw)
		r := Resolv{Path: asked, Servers: servers}
		if len(usable(servers)) < len(servers) {
			r.Remark = asked + " names a loopback address, which pods cannot reach"
		}
		return r, nil
	}
	raw, _ := os.ReadFile(etc) // absent means: no name servers
	all := nameservers(raw)
	good := usable(all)
	if len(good) > 0 && len(good) == len(all) {
		return Resolv{Path: etc, Servers: good}, nil
	}
	if real, err := os.ReadFile(behindStub); err == nil {
		if s := nameservers(real); len(s) > 0 && len(usable(s)) == len(s) {
			return Resolv{Path: behindStub, Servers: s}, nil
		}
	}
	r := Resolv{Path: filepath.Join(runDir, "resolv.conf"), Servers: good}
	if len(good) == 0 {
		r.Remark = etc + " names no server that pods can reach: they will resolve cluster names only; set resolv-conf"
	} else {
		r.Remark = etc + " also names loopback addresses, which pods cannot reach: they get it without these"
	}
	if err := atomicfile.Write(r.Path, withoutLoopback(raw), 0o644); err != nil {
		return Resolv{}, err
	}
	return r, nil
}

// nameservers are the addresses in a resolv.conf, as resolv.conf(5) reads it.
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

func usable(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if !a.Unmap().IsLoopback() && !a.IsUnspecified() { // 0.0.0.0 means this host as well
			out = append(out, a)
		}
	}
	return out
}

func withoutLoopback(raw []byte) []byte {
	var out bytes.Buffer
	for l := range bytes.Lines(raw) {
		if a, ok := nameserver(string(l)); ok && len(usable([]netip.Addr{a})) == 0 {
			continue
		}
		out.Write(l)
	}
	return out.Bytes()
}
