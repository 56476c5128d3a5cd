package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	auditpolicy "k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/klog/v2"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/internal/yamlfile"
)

// maxNodeBits is how many bits upstream's allocator of the nodes' ranges can tell apart: node-cidr-mask-size less the prefix of
// cluster-cidr.
const maxNodeBits = 16

// checkRanges returns what is wrong with ranges and addresses of the cluster that are well formed.
func (c Config) checkRanges() error {
	var errs []error
	fail := func(key, format string, a ...any) { errs = append(errs, fmt.Errorf(key+": "+format, a...)) }
	for _, s := range c.ClusterCIDR {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue // said already
		}
		switch mask := c.nodeMask(p.Addr().Is4()); {
		case mask == 0: // nothing is allocated, or the mask is not a number, which is said elsewhere
		case p.Bits() > mask:
			fail("cluster-cidr", "%s has no room for a node's range, which is a /%d: take a /%d or a larger range, or set kube-controller-manager-arg: node-cidr-mask-size", s, mask, mask-8)
		case mask-p.Bits() > maxNodeBits:
			fail("cluster-cidr", "%s is too large for nodes' ranges of /%d: Kubernetes takes a /%d at most", s, mask, mask-maxNodeBits)
		}
	}
	var services []netip.Prefix
	for _, s := range c.ServiceCIDR {
		if p, err := netip.ParsePrefix(s); err == nil {
			services = append(services, p)
		}
	}
	for _, s := range c.DNS() {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue // said already
		}
		in := slices.IndexFunc(services, func(p netip.Prefix) bool { return p.Contains(a) })
		switch {
		case slices.Contains(c.Disable, "dns"): // the user's own, wherever it is
		case in < 0 && len(c.ClusterDNS) > 0:
			fail("cluster-dns", "%s is outside of service-cidr %s; it is the address of a Service", s, strings.Join(c.ServiceCIDR, ","))
		case in < 0:
			fail("service-cidr", "%s is too small: the address of the DNS Service, %s, is outside; take a larger range, or set cluster-dns", strings.Join(c.ServiceCIDR, ","), s)
		case a == services[in].Masked().Addr() || a == services[in].Masked().Addr().Next():
			fail("cluster-dns", "%s is taken: the first address of service-cidr is that of the Service kubernetes", s)
		}
	}
	if a, err := netip.ParseAddr(c.AdvertiseAddress); err == nil && (a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()) {
		fail("advertise-address", "%s is no address at which other machines reach this one", a)
	}
	return errors.Join(errs...)
}

// nodeMask is the prefix length of a node's range of pods; 0 where none is allocated.
func (c Config) nodeMask(v4 bool) int {
	mask, family := 64, "node-cidr-mask-size-ipv6"
	if v4 {
		mask, family = 24, "node-cidr-mask-size-ipv4"
	}
	for _, arg := range c.ControllerArg {
		switch name, value, _ := componentflags.Split(arg); {
		case name == "allocate-node-cidrs" && value == "false":
			return 0
		case name == family, name == "node-cidr-mask-size" && len(c.ClusterCIDR) == 1:
			n, err := strconv.Atoi(value)
			if err != nil {
				return 0
			}
			if n > 0 { // 0 is upstream's word for its default
				mask = n
			}
		}
	}
	return mask
}

// checkNames returns what of tls-san cannot stand in a certificate.
func (c Config) checkNames() error {
	var errs []error
	for _, s := range c.TLSSAN {
		if _, err := netip.ParseAddr(s); err == nil {
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(s, "_", "x")) // an underscore is not a letter of a host's name, and is in use all the same
		if len(validation.IsDNS1123Subdomain(name)) == 0 || len(validation.IsWildcardDNS1123Subdomain(name)) == 0 {
			continue
		}
		why := "letters, digits, dashes and dots, or an IP address, without https:// and port"
		if strings.ContainsFunc(s, func(r rune) bool { return r > 127 }) {
			why = "certificates have names in ASCII; write it as DNS does, with xn--"
		}
		errs = append(errs, fmt.Errorf("tls-san: %q is not a name for a certificate: %s", s, why))
	}
	return errors.Join(errs...)
}

// checkPorts returns an error where the API server would listen at the port of another part.
func (c Config) checkPorts() error {
	if c.DisableAgent {
		return nil
	}
	node := systemports.Node{Server: true, API: c.HTTPSPort, Kubelet: c.KubeletPort, Sharing: c.ImageSharing}
	for _, h := range node.Held() {
		if h.Port == c.HTTPSPort && h.Holder != "the API server" {
			return fmt.Errorf("https-listen-port: %d is the port of %s as well", c.HTTPSPort, h.Holder)
		}
	}
	return nil
}

// checkFiles returns what is wrong with the files that settings name.
func (c Config) checkFiles() error {
	var errs []error
	fail := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if c.AuditPolicy != "" {
		fail("audit-policy", decodeAuditPolicy(c.AuditPolicy))
	}
	if c.DatastoreCA != "" {
		pem, err := yamlfile.Read(c.DatastoreCA)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s holds no certificate in PEM", c.DatastoreCA)
		}
		fail("datastore-cafile", err)
	}
	if c.DatastoreCert != "" && c.DatastoreKey != "" {
		cert, errC := yamlfile.Read(c.DatastoreCert)
		key, errK := yamlfile.Read(c.DatastoreKey)
		fail("datastore-certfile", errC)
		fail("datastore-keyfile", errK)
		if errC == nil && errK == nil {
			_, err := tls.X509KeyPair(cert, key)
			fail("datastore-certfile", err)
		}
	}
	for key, args := range map[string][]string{"kube-apiserver-arg": c.APIServerArg, "kube-controller-manager-arg": c.ControllerArg, "kube-scheduler-arg": c.SchedulerArg} {
		for _, arg := range args {
			name, value, _ := componentflags.Split(arg)
			fail(key+": "+name, checkArgFile(key, name, value))
		}
	}
	return errors.Join(errs...)
}

// checkArgFile returns why a component's flag cannot be used if it names a file to read.
func checkArgFile(key, name, value string) error {
	switch {
	case value == "":
		return nil
	case name == "audit-policy-file":
		return decodeAuditPolicy(value)
	case name == "config" && key == "kube-scheduler-arg":
		if _, err := yamlfile.Read(value); err != nil {
			return err
		}
		if _, err := scheduler.LoadConfigFromFile(klog.Background(), value); err != nil {
			return fmt.Errorf("%s: %w", value, err)
		}
	case strings.HasSuffix(name, "-file"), strings.HasSuffix(name, "-config") && strings.HasPrefix(value, "/"), name == "kubeconfig":
		_, err := os.Stat(value)
		return err
	}
	return nil
}

// decodeAuditPolicy returns why the API server would not start with a file of audit policy.
func decodeAuditPolicy(file string) error {
	text, err := yamlfile.Read(file)
	if err != nil {
		return err
	}
	if _, err := auditpolicy.LoadPolicyFromBytes(text); err != nil {
		return fmt.Errorf("%s is not an audit policy: %w", file, err)
	}
	return nil
}
