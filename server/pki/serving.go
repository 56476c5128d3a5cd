package pki

import (
	"encoding"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// SAN is a DNS name or an address in a certificate, as the setting tls-san has it. One of Name and Addr is set.
type SAN struct {
	Name string
	Addr netip.Addr
}

var (
	_ encoding.TextUnmarshaler = (*SAN)(nil)
	_ encoding.TextMarshaler   = SAN{}
	_ fmt.Stringer             = SAN{}
)

// UnmarshalText reads an IP address, or a name that can stand in a certificate.
func (s *SAN) UnmarshalText(text []byte) error {
	t := string(text)
	if a, err := netip.ParseAddr(t); err == nil {
		*s = SAN{Addr: a.Unmap()}
		return nil
	}
	// An underscore is no letter of a host name, and is in use all the same.
	name := strings.ToLower(strings.ReplaceAll(t, "_", "x"))
	if len(validation.IsDNS1123Subdomain(name)) == 0 || len(validation.IsWildcardDNS1123Subdomain(name)) == 0 {
		*s = SAN{Name: t}
		return nil
	}
	why := "letters, digits, dashes and dots, or an IP address, without https:// and port"
	if strings.ContainsFunc(t, func(r rune) bool { return r > 127 }) {
		why = "certificates have names in ASCII; write it as DNS does, with xn--"
	}
	return fmt.Errorf("%q is not a name for a certificate: %s", t, why)
}

// MarshalText returns the name or the address.
func (s SAN) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the name or the address.
func (s SAN) String() string {
	if s.Addr.IsValid() {
		return s.Addr.String()
	}
	return s.Name
}

// Serving describes the API server's certificate: the names and addresses by which clients reach this server.
type Serving struct {
	// Domain is the cluster's.
	Domain string
	// SANs are those of the settings.
	SANs []SAN
	// Services are the ranges of Services; the first address of each is that of the Service kubernetes.
	Services []netip.Prefix
	// Bind is the address to listen on; the zero Addr means all.
	Bind netip.Addr
}

// Names returns the DNS names.
func (s Serving) Names() []string {
	out := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + s.Domain,
		"localhost"}
	if h, err := os.Hostname(); err == nil && h != "" {
		out = append(out, h)
	}
	for _, san := range s.SANs {
		if san.Name != "" {
			out = append(out, san.Name)
		}
	}
	return out
}

// Set returns the addresses of the settings.
func (s Serving) Set() (out []netip.Addr) {
	for _, san := range s.SANs {
		if san.Addr.IsValid() {
			out = append(out, san.Addr)
		}
	}
	return out
}

// IPs returns the addresses of a machine that has some of its own; empty ones are left out.
func (s Serving) IPs(machine ...string) []string {
	out := []string{"127.0.0.1", "::1"}
	for _, a := range machine {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, p := range s.Services {
		out = append(out, p.Addr().Next().String())
	}
	for _, a := range append([]netip.Addr{s.Bind}, s.Set()...) {
		if a.IsValid() && !a.IsUnspecified() {
			out = append(out, a.String())
		}
	}
	return out
}
