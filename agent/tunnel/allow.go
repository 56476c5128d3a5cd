package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Allow restricts what servers may reach through this node.
type Allow struct {
	// Node is this node's name, which servers use as the kubelet's host name.
	Node string
	// Kubelet is the kubelet's address; servers reach no other port of the node itself.
	Kubelet netip.AddrPort
	// PodRanges returns the node's pod ranges. The function and its result may be nil while they are not known.
	PodRanges func() []netip.Prefix
	// Addresses returns the machine's current addresses; nil means machineAddresses.
	Addresses func() ([]netip.Addr, error)
}

// maxTargetLen bounds the length of a requested target: a DNS name and a port.
const maxTargetLen = 253 + 6

var errNotAllowed = errors.New("this node lets servers reach its kubelet and its pods only")

// Target returns the address to connect to for a requested HOST:PORT, or why it is not allowed. Names are never
// resolved.
func (a Allow) Target(asked string) (string, error) {
	if len(asked) > maxTargetLen {
		return "", errNotAllowed
	}
	host, text, err := net.SplitHostPort(asked)
	if err != nil {
		return "", fmt.Errorf("not an address with a port: %w", errNotAllowed)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return "", fmt.Errorf("not an address with a port: %w", errNotAllowed)
	}
	kubelet := uint16(port) == a.Kubelet.Port()
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if kubelet && strings.EqualFold(host, a.Node) {
			return a.Kubelet.String(), nil
		}
		return "", errNotAllowed
	}
	ip = ip.Unmap()
	if ip.Zone() != "" {
		return "", errNotAllowed
	}
	self, err := a.Addresses()
	if err != nil {
		return "", fmt.Errorf("list this machine's addresses: %w", err)
	}
	// The bridge of the pods has an address from the pod range; what listens there belongs to the node.
	if ip.IsLoopback() || slices.Contains(self, ip) {
		if kubelet {
			return a.Kubelet.String(), nil
		}
		return "", errNotAllowed
	}
	if a.PodRanges != nil && slices.ContainsFunc(a.PodRanges(), func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return netip.AddrPortFrom(ip, uint16(port)).String(), nil
	}
	return "", errNotAllowed
}

// machineAddresses returns the addresses of all interfaces.
func machineAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	out := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}
