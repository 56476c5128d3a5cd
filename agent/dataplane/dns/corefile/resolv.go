package corefile

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// ParseResolvConf returns the addresses of the name servers in a resolv.conf.
func ParseResolvConf(r io.Reader) ([]string, error) {
	var out []string
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			continue // libc ignores such lines, too
		}
		if s := a.Unmap().String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, sc.Err()
}
