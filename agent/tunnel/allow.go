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

// Allow is what servers may reach through this node.
type Allow struct {
	// Node is this node's name, by which its kubelet is asked for.
	Node string
	// Kubelet is where the kubelet listens; a server reaches no other port of the node itself.
	Kubelet netip.AddrPort
	// PodRanges are the node's own, nil while they are not known.
	PodRanges func() []netip.Prefix
	// Own are the machine's addresses at this moment.
	Own func() ([]netip.Addr, error)
}

// longest is how long an address may be: a DNS name and a port.
const longest = 253 + 6

var errNotAllowed = errors.New("this node lets servers reach its kubelet and its pods only")

// Target says where to connect for what a server asks, or why not to. Names are never resolved.
func (a Allow) Target(asked string) (string, error) {
	if len(asked) > longest {
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
	own, err := a.Own()
	if err != nil {
		return "", fmt.Errorf("list this machine's addresses: %w", err)
	}
	// The pods' bridge has an address from their range, and what listens there is the node's.
	if ip.IsLoopback() || slices.Contains(own, ip) {
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

// MachineAddresses are those of all interfaces.
func MachineAddresses() ([]netip.Addr, error) {
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
