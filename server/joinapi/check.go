package joinapi

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/nodecerts"
)

// Limits of the properties that a node reports of itself.
const (
	maxIPs      = 8
	maxNames    = 8
	minPassword = 20
	maxPassword = 256
)

// reserved holds the names and addresses of the API servers, which no node may have.
type reserved struct {
	names  []string // a node's own name is checked against these
	dns    []string // its further names against these: the names in the certificates of all servers
	ips    []netip.Addr
	domain string                // of the cluster's names
	shared map[netip.Addr]string // addresses in the certificate of a server by its settings, as a virtual one
	ranges []netip.Prefix        // of Services and pods
}

// node is a request that has been checked.
type node struct {
	name, password          string
	from                    netip.Addr // where the request comes from
	ips                     []string
	names                   []string // further ones
	external                []string // as far as no server has them
	seen                    []string // the external ones, also those that a server has
	kubelet, agent, serving *x509.CertificateRequest
}

// checkName returns the reason why a machine may not have a name with a password.
func checkName(name, password string, reserved []string) error {
	if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
		return fmt.Errorf("node name %q: %s", name, strings.Join(e, ", "))
	}
	if len(name) > validation.LabelValueMaxLength {
		return fmt.Errorf("node name %q is longer than %d characters", name, validation.LabelValueMaxLength)
	}
	if slices.ContainsFunc(reserved, func(r string) bool { return covers(r, name) }) {
		return fmt.Errorf("node name %q is a name of the API server; set node-name to another", name)
	}
	if len(password) < minPassword || len(password) > maxPassword {
		return fmt.Errorf("the node password has %d characters, want %d to %d", len(password), minPassword, maxPassword)
	}
	return nil
}

// covers reports whether a name in the API server's certificate, which may be a wildcard, is good for a node's name.
func covers(dnsName, node string) bool {
	if parent, wild := strings.CutPrefix(dnsName, "*."); wild {
		_, under, ok := strings.Cut(node, ".")
		return ok && strings.EqualFold(parent, under)
	}
	return strings.EqualFold(dnsName, node)
}

// check takes a request apart. What it returns holds nothing that was not asked for and allowed.
func check(r *joinwire.NodeRequest, res reserved) (*node, error) {
	n := &node{name: r.Name, password: r.Password}
	if err := checkName(r.Name, r.Password, res.names); err != nil {
		return nil, err
	}
	if len(r.IPs) == 0 || len(r.IPs) > maxIPs {
		return nil, fmt.Errorf("%d node addresses, want 1 to %d", len(r.IPs), maxIPs)
	}
	for _, s := range r.IPs {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("node address %q is not an IP address", s)
		}
		ip = ip.Unmap()
		if err := res.allows(ip); err != nil {
			return nil, fmt.Errorf("node address %s: %w", ip, err)
		}
		n.ips = append(n.ips, ip.String())
	}
	if len(r.ExternalIPs) > maxIPs {
		return nil, fmt.Errorf("%d external addresses, %d are possible", len(r.ExternalIPs), maxIPs)
	}
	for _, s := range r.ExternalIPs {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("external address %q is not an IP address", s)
		}
		// Behind one router a node has the address of a server: then its certificate goes without.
		if ip = ip.Unmap(); res.external(ip) == nil {
			n.seen = append(n.seen, ip.String())
		}
		if res.allows(ip) == nil && !slices.Contains(n.ips, ip.String()) {
			n.external = append(n.external, ip.String())
		}
	}
	if len(r.DNSNames) > maxNames {
		return nil, fmt.Errorf("%d further names, %d are possible", len(r.DNSNames), maxNames)
	}
	for _, name := range r.DNSNames {
		if err := res.allowsName(name); err != nil {
			return nil, fmt.Errorf("node name %.253q: %w", name, err)
		}
		if !slices.Contains(n.names, name) && name != n.name {
			n.names = append(n.names, name)
		}
	}
	var errs []error
	csr := func(what, text string, id nodecerts.Identity) *x509.CertificateRequest {
		c, err := parseCSR(text, id.User, id.Groups)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s CSR: %w", what, err))
		}
		return c
	}
	n.kubelet = csr("kubelet", r.Kubelet, nodecerts.Kubelet(n.name))
	n.agent = csr("agent", r.Agent, nodecerts.Agent(n.name))
	n.serving = csr("serving", r.Serving, nodecerts.Serving(n.name))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, c := range []*x509.CertificateRequest{n.kubelet, n.agent} {
		if len(c.DNSNames)+len(c.IPAddresses) > 0 {
			return nil, errors.New("a client's CSR asks for names or addresses")
		}
	}
	if !slices.Equal(n.serving.DNSNames, []string{n.name}) {
		return nil, fmt.Errorf("serving CSR asks for the names %q, a node gets its own name only", n.serving.DNSNames)
	}
	for _, ip := range n.serving.IPAddresses {
		if !slices.Contains(n.ips, ip.String()) {
			return nil, fmt.Errorf("serving CSR asks for the address %s, which is not among the node's", ip)
		}
	}
	return n, nil
}

// allows returns why a node cannot have an address.
func (r reserved) allows(ip netip.Addr) error {
	if slices.Contains(r.ips, ip) {
		return errors.New("it is an address of the API server")
	}
	if server, ok := r.shared[ip]; ok {
		return fmt.Errorf("it is an address of the API server: server %s has it in its certificate (tls-san); "+
			"set node-ip to another address of this machine, or remove it from tls-san and restart that server", server)
	}
	return r.external(ip)
}

// allowsName returns why a node cannot have a further name: clients that trust the servers' authority would take the
// node for another.
func (r reserved) allowsName(name string) error {
	if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
		return errors.New(strings.Join(e, ", "))
	}
	if _, err := netip.ParseAddr(name); err == nil || !strings.Contains(name, ".") {
		return errors.New("it must be a name with a domain, as node1.example.com")
	}
	switch {
	case slices.ContainsFunc(r.dns, func(s string) bool { return covers(s, name) }):
		return errors.New("it is a name of the API server")
	case strings.HasSuffix(name, ".svc"), strings.HasSuffix(name, ".localhost"),
		strings.HasSuffix("."+name, "."+r.domain):
		return errors.New("it is in a domain of Services or of the machine itself")
	}
	return nil
}

// external returns the reason why an address cannot be a node's external one. A router's, behind which a server may be
// as well, is allowed.
func (r reserved) external(ip netip.Addr) error {
	if !ip.IsGlobalUnicast() { // loopback, link-local, multicast, unspecified
		return errors.New("it is not an address by which other machines reach a node")
	}
	for _, p := range r.ranges {
		if p.Contains(ip) {
			return fmt.Errorf("it lies in %s, the cluster's own range", p)
		}
	}
	return nil
}

// parseCSR reads one CSR whose subject is exactly the user with the groups, and that asks for nothing but
// names and addresses.
func parseCSR(text, user string, groups []string) (*x509.CertificateRequest, error) {
	b, rest := pem.Decode([]byte(text))
	if b == nil || b.Type != "CERTIFICATE REQUEST" || len(b.Headers) > 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("it is not one certificate request in PEM form")
	}
	c, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return nil, fmt.Errorf("an RSA key of %d bits", n)
		}
	default:
		return nil, fmt.Errorf("a key of a kind that is not supported (%s)", c.PublicKeyAlgorithm)
	}
	if err := c.CheckSignature(); err != nil {
		return nil, fmt.Errorf("it is not signed by its key: %w", err)
	}
	s := c.Subject
	if s.CommonName != user || !slices.Equal(s.Organization, groups) || len(s.Names) != 1+len(groups) {
		return nil, fmt.Errorf("its subject is %q, it must be CN=%s, O=%s", s.String(), user, strings.Join(groups, ","))
	}
	if len(c.EmailAddresses)+len(c.URIs) > 0 {
		return nil, errors.New("it asks for an e-mail address or a URI")
	}
	return c, nil
}
