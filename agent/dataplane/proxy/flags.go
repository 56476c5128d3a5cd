package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/umiak-io/umiak/internal/componentflags"
)

// flagsKey is the setting that holds flags of kube-proxy.
const flagsKey = "kube-proxy-arg"

// primary is the value of nodeport-addresses for the node's own addresses.
const primary = "primary"

// Flags is what flags of kube-proxy set here.
type Flags struct {
	// NodePortAddresses are the ranges of nodeport-addresses. NodePortPrimary stands for the node's addresses instead.
	NodePortAddresses []netip.Prefix
	NodePortPrimary   bool
	// Metrics is where metrics are served, without authentication; invalid: nowhere.
	Metrics netip.AddrPort
	// Ineffective are flags of kube-proxy that were given and set nothing here, in alphabetical order.
	Ineffective []string
}

// withoutEffect are kube-proxy's flags, of v1.37, that have no meaning for a proxy in the agent's process that speaks
// netlink to nftables.
var withoutEffect = []string{
	"bind-address", "bind-address-hard-fail", "cleanup", "cluster-cidr", "config", "config-sync-period",
	"conntrack-max-per-core", "conntrack-min", "conntrack-tcp-be-liberal", "conntrack-tcp-timeout-close-wait",
	"conntrack-tcp-timeout-established", "conntrack-udp-timeout", "conntrack-udp-timeout-stream", "detect-local-mode",
	"feature-gates", "healthz-bind-address", "hostname-override", "init-only", "iptables-localhost-nodeports",
	"iptables-masquerade-bit", "iptables-min-sync-period", "iptables-sync-period", "ipvs-exclude-cidrs",
	"ipvs-min-sync-period", "ipvs-scheduler", "ipvs-strict-arp", "ipvs-sync-period", "ipvs-tcp-timeout",
	"ipvs-tcpfin-timeout", "ipvs-udp-timeout", "kube-api-burst", "kube-api-content-type", "kube-api-qps", "kubeconfig",
	"log-flush-frequency", "log-json-info-buffer-size", "log-json-split-stream", "log-text-info-buffer-size",
	"log-text-split-stream", "logging-format", "masquerade-all", "master", "nftables-masquerade-bit", "oom-score-adj",
	"pod-bridge-interface", "pod-interface-name-prefix", "profiling", "proxy-mode", "show-hidden-metrics-for-version",
	"v", "vmodule",
}

// ParseFlags reads flags of kube-proxy, each NAME=VALUE.
func ParseFlags(args []string) (f Flags, err error) {
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	addresses := fs.StringSlice("nodeport-addresses", nil, "")
	metrics := fs.String("metrics-bind-address", "", "")
	for _, name := range withoutEffect {
		fs.String(name, "", "")
		fs.Lookup(name).NoOptDefVal = "true"
	}
	if err := componentflags.Set(fs, flagsKey, args, nil); err != nil {
		return f, err
	}
	fs.Visit(func(g *pflag.Flag) {
		if slices.Contains(withoutEffect, g.Name) {
			f.Ineffective = append(f.Ineffective, g.Name)
		}
	})
	var errs []error
	for _, a := range *addresses {
		if f.NodePortPrimary = f.NodePortPrimary || a == primary; a == primary {
			continue
		}
		p, err := netip.ParsePrefix(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: nodeport-addresses: %q is not a range as 192.168.1.0/24, nor %s", flagsKey,
				a, primary))
		}
		f.NodePortAddresses = append(f.NodePortAddresses, p.Masked())
	}
	if f.NodePortPrimary && len(f.NodePortAddresses) > 0 {
		errs = append(errs, fmt.Errorf("%s: nodeport-addresses: %s stands alone", flagsKey, primary))
	}
	if *metrics != "" {
		if f.Metrics, err = metricsAddress(*metrics); err != nil {
			errs = append(errs, err)
		}
	}
	return f, errors.Join(errs...)
}

// metricsPort is kube-proxy's.
const metricsPort = 10249

// metricsAddress reads ADDRESS or ADDRESS:PORT.
func metricsAddress(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(a, metricsPort), nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("%s: metrics-bind-address: %q is not ADDRESS:PORT as 127.0.0.1:%d", flagsKey, text,
			metricsPort)
	}
	return ap, nil
}

// nowhere are ranges in which no packet to a node port can be: the unspecified address of each family.
var nowhere = []netip.Prefix{
	netip.PrefixFrom(netip.IPv4Unspecified(), 32), netip.PrefixFrom(netip.IPv6Unspecified(), 128),
}

// nodePorts returns the ranges of addresses at which node ports answer on a node with addresses ips; none means all.
// For the addresses of a node that has none, they are ranges without any address of the node.
func (f Flags) nodePorts(ips []netip.Addr) []netip.Prefix {
	if !f.NodePortPrimary {
		return f.NodePortAddresses
	}
	if len(ips) == 0 {
		return nowhere
	}
	var out []netip.Prefix
	for _, a := range ips {
		out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
	}
	return out
}

// Remarks returns a sentence about the flags that were given and have no effect.
func (f Flags) Remarks() []string {
	if len(f.Ineffective) == 0 {
		return nil
	}
	return []string{flagsKey + ": " + strings.Join(f.Ineffective, ", ") +
		": no effect; the node's own service proxy takes nodeport-addresses and metrics-bind-address"}
}
