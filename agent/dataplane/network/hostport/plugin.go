package hostport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netpol/announce"
	"github.com/umiak-io/umiak/agent/dataplane/podsource"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Main is the program.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check}, version.All, "CNI portmap plugin of umiak")
}

type config struct {
	types.NetConf
	RuntimeConfig struct {
		PortMaps []portMap `json:"portMappings,omitempty"`
	} `json:"runtimeConfig,omitempty"`
	// PolicySocket is the socket at which the agent accepts announcements of pods, to put their policies in force.
	PolicySocket string `json:"policySocket,omitempty"`
	// StateDir is the folder with the ports of each pod, for Restore.
	StateDir string `json:"stateDir,omitempty"`
	// SourceCheck drops packets of the pod with others than its own addresses.
	SourceCheck bool `json:"sourceCheck,omitempty"`
	// Held are the ports that pods do not get.
	Held []Held `json:"held,omitempty"`
}

// Held is a port of the host that belongs to the system.
type Held struct {
	Protocol string `json:"protocol"` // in lower case
	Port     int    `json:"port"`
	Holder   string `json:"holder"`
}

type portMap struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// mapping is a checked portMap for one address of the pod.
type mapping struct {
	proto    byte
	host     netip.Addr // invalid: every address of the host
	hostPort uint16
	pod      netip.Addr
	podPort  uint16
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// parse reads the configuration and the pod's addresses that the plugin before has given.
func parse(stdin []byte, ifName string) (*config, []mapping, error) {
	c := &config{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, nil, fmt.Errorf("read network configuration: %w", err)
	}
	var pods []netip.Addr
	if c.RawPrevResult != nil {
		if err := version.ParsePrevResult(&c.NetConf); err != nil {
			return nil, nil, fmt.Errorf("read prevResult: %w", err)
		}
		r, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return nil, nil, fmt.Errorf("read prevResult: %w", err)
		}
		pods = addresses(r, ifName)
	}
	var out []mapping
	for _, p := range c.RuntimeConfig.PortMaps {
		if p.HostPort == 0 {
			continue
		}
		proto, known := protocols[strings.ToLower(p.Protocol)]
		if !known || p.HostPort < 0 || p.HostPort > 65535 || p.ContainerPort <= 0 || p.ContainerPort > 65535 {
			return nil, nil, fmt.Errorf("port mapping %+v is invalid", p)
		}
		var host netip.Addr
		if p.HostIP != "" {
			var err error
			if host, err = netip.ParseAddr(p.HostIP); err != nil {
				return nil, nil, fmt.Errorf("port mapping: %w", err)
			}
			host = host.Unmap()
		}
		for _, pod := range pods {
			if host.IsValid() && host.Is4() != pod.Is4() {
				continue // 0.0.0.0 is every address of its family, not of the other
			}
			m := mapping{proto: proto, hostPort: uint16(p.HostPort), pod: pod, podPort: uint16(p.ContainerPort)}
			if host.IsValid() && !host.IsUnspecified() {
				m.host = host
			}
			out = append(out, m)
		}
	}
	return c, out, nil
}

// addresses are the pod's on the interface, at most one a family.
func addresses(r *current.Result, ifName string) []netip.Addr {
	var out []netip.Addr
	seen := map[bool]bool{}
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) &&
			(r.Interfaces[*i].Name != ifName || r.Interfaces[*i].Sandbox == "") {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if a = a.Unmap(); !ok || seen[a.Is4()] {
			continue
		}
		seen[a.Is4()] = true
		out = append(out, a)
	}
	return out
}

func add(args *skel.CmdArgs) error {
	c, maps, err := parse(args.StdinData, args.IfName)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return errors.New("portmap must stand behind another plugin")
	}
	if err := c.free(); err != nil {
		return err
	}
	if c.SourceCheck {
		if err := c.checkSource(args); err != nil {
			return err
		}
	}
	if len(maps) > 0 {
		if err := c.add(args, maps); err != nil {
			return err
		}
	}
	if err := announcePod(args, c, false); err != nil {
		return err
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	c, _, err := parse(args.StdinData, args.IfName)
	if err != nil {
		return err
	}
	_ = announcePod(args, c, true) // otherwise the agent notices when the Pod object changes
	if len(c.RuntimeConfig.PortMaps) == 0 {
		return nil
	}
	unlock, err := lock(c.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := forget(c.StateDir, args.ContainerID); err != nil {
		return err
	}
	return remove(context.Background(), args.ContainerID)
}

// dnsPort is the port at which programs of the host resolve names.
const dnsPort = 53

// free refuses a pod that asks for a port of the system: what comes there would go to the pod. The kubelet makes an
// Event of the refusal.
func (c *config) free() error {
	for _, m := range c.RuntimeConfig.PortMaps {
		holder := ""
		for _, h := range c.Held {
			if h.Port == m.HostPort && h.Protocol == strings.ToLower(m.Protocol) {
				holder = h.Holder
			}
		}
		if a, err := netip.ParseAddr(m.HostIP); err == nil && m.HostPort != 0 && hostsOwn(a.Unmap(), m.HostPort) {
			holder = "the name servers of this machine"
		}
		if holder != "" {
			return fmt.Errorf("hostPort %s of this node belongs to %s: take another port, or a Service",
				net.JoinHostPort(m.HostIP, fmt.Sprintf("%d/%s", m.HostPort, strings.ToUpper(m.Protocol))), holder)
		}
	}
	return nil
}

// hostsOwn reports whether a port of an address is one at which name servers of the host, or the node's, answer
// programs of the host and pods.
func hostsOwn(a netip.Addr, port int) bool {
	if s := a.String(); s == wellknown.DNSv4 || s == wellknown.DNSv6 {
		return true
	}
	return port == dnsPort && (a.IsLoopback() || a.IsLinkLocalUnicast()) && a != netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// checkSource adds the source checks of the pod, which has not started yet.
func (c *config) checkSource(args *skel.CmdArgs) error {
	p, err := podsource.OfResult(c.PrevResult, args.IfName)
	if err != nil {
		return fmt.Errorf("read prevResult: %w", err)
	}
	if p == nil {
		return nil
	}
	return podsource.Check(context.Background(), *p)
}

// add writes the pod's ports down, for Restore, and opens them.
func (c *config) add(args *skel.CmdArgs, maps []mapping) error {
	unlock, err := lock(c.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	s := state{Container: args.ContainerID, Netns: args.Netns}
	for _, m := range maps {
		s.Ports = append(s.Ports, m.port())
	}
	if err := s.write(c.StateDir); err != nil {
		return err
	}
	if err := install(context.Background(), args.ContainerID, maps); err != nil {
		return err
	}
	if err := letLocalhostReach(maps); err != nil {
		return err
	}
	forgetUDP(maps)
	return nil
}

// letLocalhostReach makes the ports reachable at localhost for programs of the host.
func letLocalhostReach(maps []mapping) error {
	for _, m := range maps {
		if m.pod.Is4() && (!m.host.IsValid() || m.host.IsLoopback()) {
			return routeLocalnet(m.pod)
		}
	}
	return nil
}

// Bounds of the wait for network policies. A pod that gets none in time fails to start and is tried again.
const (
	addTimeout    = 5 * time.Second
	removeTimeout = 500 * time.Millisecond
)

// announcePod announces the pod and waits until its network policies are in force. It is done here because a
// plugin of its own would be one more process for every pod.
func announcePod(args *skel.CmdArgs, c *config, gone bool) error {
	if c.PolicySocket == "" {
		return nil
	}
	var k8s struct {
		types.CommonArgs
		K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID types.UnmarshallableString
	}
	k8s.IgnoreUnknown = true
	if err := types.LoadArgs(args.Args, &k8s); err != nil {
		return fmt.Errorf("read CNI_ARGS: %w", err)
	}
	if k8s.K8S_POD_NAME == "" {
		return nil // not a pod of Kubernetes
	}
	p := announce.Pod{Namespace: string(k8s.K8S_POD_NAMESPACE), Name: string(k8s.K8S_POD_NAME),
		UID: string(k8s.K8S_POD_UID), Container: args.ContainerID, Gone: gone}
	wait := removeTimeout
	if !gone {
		wait = addTimeout
		r, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return fmt.Errorf("read prevResult: %w", err)
		}
		p.Addrs = addresses(r, args.IfName)
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return announce.Send(ctx, c.PolicySocket, p)
}

func check(args *skel.CmdArgs) error {
	_, maps, err := parse(args.StdinData, args.IfName)
	if err != nil || len(maps) == 0 {
		return err
	}
	n, err := count(args.ContainerID)
	if err != nil {
		return err
	}
	if n < len(maps) {
		return fmt.Errorf("%d of %d port mappings are missing in nftables table %s", len(maps)-n, len(maps), Table)
	}
	return nil
}

// routeLocalnet lets packets from 127.0.0.1 leave on the interface towards the pod, so that the host's
// own programs reach the port at localhost. What this would open to pods is closed by a rule.
func routeLocalnet(pod netip.Addr) error {
	routes, err := netlink.RouteGet(pod.AsSlice())
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("find the route to %s: %w", pod, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("find the interface towards %s: %w", pod, err)
	}
	file := filepath.Join("/proc/sys/net/ipv4/conf", link.Attrs().Name, "route_localnet")
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let localhost reach host ports: %w", err)
	}
	return nil
}

// forgetUDP drops what the kernel remembers of UDP flows to the ports: they would go on to an earlier pod.
func forgetUDP(maps []mapping) {
	for _, m := range maps {
		if m.proto != unix.IPPROTO_UDP {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if f.AddProtocol(unix.IPPROTO_UDP) != nil || f.AddPort(netlink.ConntrackOrigDstPort, m.hostPort) != nil {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if !m.pod.Is4() {
			family = unix.AF_INET6
		}
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f) // otherwise flows end with their timeout
	}
}
