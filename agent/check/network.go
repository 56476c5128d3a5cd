package check

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/nodeip"
)

// inNewNetns calls f in a temporary network namespace.
func inNewNetns(f func()) error {
	done := make(chan error)
	go func() {
		// Not unlocked: the thread ends with the goroutine, and the namespace with the thread.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("create network namespace: %w", err)
			return
		}
		f()
		done <- nil
	}()
	return <-done
}

// kernelNetwork tests the kernel features of the pod network and of Services.
func kernelNetwork(_ context.Context, cfg Config) []Result {
	var out []Result
	err := inNewNetns(func() {
		out = append(out, devices(cfg)...)
		if err := hasNftables(); err != nil {
			// One line instead of one per expression.
			out = append(out, missing("nftables",
				"load the kernel module nf_tables, or use a kernel with CONFIG_NF_TABLES", "there is none: %v", err))
			return
		}
		for _, e := range expressions {
			out = append(out, tryRules(e))
		}
	})
	if err != nil {
		return []Result{missing("network", "", "%v", err)}
	}
	return collapse(out)
}

func devices(cfg Config) []Result {
	var out []Result
	// Creating a device loads its kernel module, if installed.
	try := func(module string, l netlink.Link) {
		if err := netlink.LinkAdd(l); err != nil {
			fix := "install the package with the kernel module " + module +
				" (Ubuntu on a Raspberry Pi: the package linux-modules-extra-raspi)"
			out = append(out, missing(module, fix, "cannot be made: %v", err))
			return
		}
		out = append(out, ok(module, "can be made"))
	}
	named := func(n string) netlink.LinkAttrs { a := netlink.NewLinkAttrs(); a.Name = n; return a }
	try("bridge", &netlink.Bridge{LinkAttrs: named("b")})
	try("veth", &netlink.Veth{LinkAttrs: named("v0"), PeerName: "v1"})
	if cfg.Backend == "" || cfg.Backend == "vxlan" {
		try("vxlan", &netlink.Vxlan{LinkAttrs: named("x"), VxlanId: 1, Port: 8472})
	}
	if cfg.Backend == "wireguard-native" {
		try("wireguard", &netlink.Wireguard{LinkAttrs: named("w")})
	}
	return out
}

// hasNftables returns an error if the kernel has no nftables.
func hasNftables() error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	return c.CloseLasting()
}

// rules is a set of expressions that depend on one kernel option and are tested together.
type rules struct {
	name, option string
	need         bool
	build        func(c *nftables.Conn, t *nftables.Table) error
}

func chain(c *nftables.Conn, t *nftables.Table, hook *nftables.ChainHook, kind nftables.ChainType,
	prio *nftables.ChainPriority) *nftables.Chain {
	return c.AddChain(&nftables.Chain{Name: "c", Table: t, Type: kind, Hooknum: hook, Priority: prio})
}

func simple(hook *nftables.ChainHook, kind nftables.ChainType, prio *nftables.ChainPriority,
	exprs ...expr.Any) func(*nftables.Conn, *nftables.Table) error {
	return func(c *nftables.Conn, t *nftables.Table) error {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain(c, t, hook, kind, prio), Exprs: exprs})
		return nil
	}
}

var expressions = []rules{
	{"nf_tables", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET", true,
		simple(nftables.ChainHookForward, nftables.ChainTypeFilter, nftables.ChainPriorityFilter, &expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictAccept})},
	{"verdict map", "CONFIG_NF_TABLES", true, func(c *nftables.Conn, t *nftables.Table) error {
		base := chain(c, t, nftables.ChainHookPrerouting, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest)
		target := c.AddChain(&nftables.Chain{Name: "svc", Table: t})
		key := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
		m := &nftables.Set{Name: "m", Table: t, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict,
			Concatenation: true}
		if err := c.AddSet(m, []nftables.SetElement{{
			Key:         []byte{10, 43, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0},
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: target.Name},
		}}); err != nil {
			return err
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: base, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 9},
			&expr.Payload{DestRegister: 10, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		}})
		return nil
	}},
	{"NAT", "CONFIG_NFT_NAT", true, simple(nftables.ChainHookPrerouting, nftables.ChainTypeNAT,
		nftables.ChainPriorityNATDest,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Immediate{Register: 1, Data: []byte{10, 42, 0, 2}}, &expr.Immediate{Register: 2, Data: []byte{0, 80}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2,
			Specified: true})},
	{"masquerade", "CONFIG_NFT_MASQ", true, simple(nftables.ChainHookPostrouting, nftables.ChainTypeNAT,
		nftables.ChainPriorityNATSource, &expr.Masq{FullyRandom: true})},
	{"numgen", "CONFIG_NFT_NUMGEN", true, simple(nftables.ChainHookForward, nftables.ChainTypeFilter,
		nftables.ChainPriorityFilter,
		&expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_RANDOM})},
	{"conntrack", "CONFIG_NFT_CT", true, simple(nftables.ChainHookForward, nftables.ChainTypeFilter,
		nftables.ChainPriorityFilter,
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE})},
	{"fib", "CONFIG_NFT_FIB_INET", true, simple(nftables.ChainHookPrerouting, nftables.ChainTypeFilter,
		nftables.ChainPriorityFilter,
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true})},
	{"reject", "CONFIG_NFT_REJECT_INET", true,
		simple(nftables.ChainHookForward, nftables.ChainTypeFilter, nftables.ChainPriorityFilter,
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})},
}

// tryRules creates the expressions in a separate table, in the caller's network namespace.
func tryRules(r rules) Result {
	fix := "load the kernel module, or use a kernel with " + r.option
	c, err := nftables.New()
	if err == nil {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "umiak-check-" +
			strings.ReplaceAll(r.name, " ", "-")})
		if err = r.build(c, t); err == nil {
			err = c.Flush()
		}
	}
	if err != nil {
		if r.need {
			return missing("nftables: "+r.name, fix, "%v", err)
		}
		return warn("nftables: "+r.name, fix, "%v", err)
	}
	return ok("nftables: "+r.name, "works")
}

// collapse merges the passed results into one line.
func collapse(in []Result) []Result {
	var good []string
	var out []Result
	for _, r := range in {
		if r.State == OK {
			good = append(good, strings.TrimPrefix(r.Name, "nftables: "))
		} else {
			out = append(out, r)
		}
	}
	if len(good) > 0 {
		out = append([]Result{ok("network", "%s", strings.Join(good, ", "))}, out...)
	}
	return out
}

func forwarding(context.Context, Config) []Result {
	var out []Result
	if now, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil {
		out = append(out, missing("forwarding", "use a kernel with IPv4", "%v", err))
	} else if err := unix.Access("/proc/sys/net/ipv4/ip_forward", unix.W_OK); err != nil &&
		strings.TrimSpace(string(now)) != "1" {
		out = append(out, missing("forwarding", "let umiak write net.ipv4.ip_forward, or set it to 1 beforehand",
			"net.ipv4.ip_forward cannot be set: %v", err))
	} else {
		out = append(out, ok("forwarding", "can be turned on"))
	}
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		if caps, err := host.DetectCapabilities(); err == nil && caps.Has(host.CapSysModule) &&
			host.HasModule("br_netfilter") {
			out = append(out, ok("br_netfilter", "a module that umiak loads when it starts"))
		} else {
			out = append(out, warn("br_netfilter",
				"load it beforehand (put it into /etc/modules-load.d), or use a kernel with CONFIG_BRIDGE_NETFILTER",
				"neither loaded nor found as a module: without it a pod cannot reach a Service whose endpoint runs on the same node"))
		}
	}
	return out
}

// foreignDrops looks for other nftables chains that drop packets by default; umiak's rules cannot override them.
func foreignDrops(context.Context, Config) []Result {
	c, err := nftables.New()
	if err != nil {
		return nil // kernelNetwork reports it
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil
	}
	var out []Result
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Type != nftables.ChainTypeFilter || ch.Policy == nil ||
			*ch.Policy != nftables.ChainPolicyDrop || strings.HasPrefix(ch.Table.Name, "umiak-") {
			continue
		}
		switch *ch.Hooknum {
		case *nftables.ChainHookForward:
			out = append(out, warn("firewall",
				"accept the pods' range in it (10.42.0.0/16 unless cluster-cidr is set), as source and as destination",
				"chain %s of nftables table %s drops forwarded packets unless it accepts them", ch.Name, ch.Table.Name))
		case *nftables.ChainHookInput:
			out = append(
				out, warn("firewall", "accept in it what comes from the interface cni0 (DNS at port 225, the API at 6443), and from other machines the ports in docs/requirements.md",
					"chain %s of nftables table %s drops packets to this host unless it accepts them", ch.Name,
					ch.Table.Name))
		}
	}
	return out
}

func address(_ context.Context, _ Config) []Result {
	found, err := nodeip.Find()
	if err != nil {
		return []Result{warn("address", "set node-ip", "%v", err)}
	}
	if len(found) == 0 {
		return []Result{warn("address", "plug in the cable or set node-ip: umiak takes the address as soon as it comes",
			"this machine has none; pods run once it has had one")}
	}
	return []Result{ok("address", "%v", found)}
}

// dnsPort reports that umiak leaves port 53 to the host. The cluster's DNS listens at another port, and is reached at
// port 53 of its own addresses.
func dnsPort(ctx context.Context, _ Config) []Result {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", ":53")
	if err != nil {
		return []Result{ok(
			"port 53", "used by a DNS server of this host, which keeps it: the cluster's DNS runs beside it")}
	}
	_ = l.Close()
	return []Result{ok("port 53", "free, and stays so: the cluster's DNS does not need it")}
}

func ports(ctx context.Context, cfg Config) []Result {
	var out []Result
	for _, p := range []struct {
		port  int
		fix   string
		taken func(name, fix, format string, a ...any) Result
	}{
		{cfg.ServerPort, "set https-listen-port", missing},
		{cfg.NodePort, "set kubelet-port", missing},
		{cfg.BalancerPort, "set lb-server-port", missing},
		// Without it a node works, but does not give images to others.
		{cfg.SharePort, "set image-sharing: false", warn},
	} {
		if p.port == 0 {
			continue
		}
		name := "port " + strconv.Itoa(p.port)
		if err := port(ctx, cfg, p.port, p.fix); err != nil {
			r := failed(name, err)
			out = append(out, p.taken(name, r.Fix, "%s", r.Detail))
			continue
		}
		out = append(out, ok(name, "free"))
	}
	return out
}
