package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/agent/dataplane/network/hostport"
	"github.com/umiak-io/umiak/internal/atomicfile"
)

// confName sorts before what a user may put beside it; containerd takes the first file.
const confName = "10-umiak.conflist"

// Bridge is the interface that all pods of the node hang on.
const Bridge = "cni0"

type conflist struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type bridgeConf struct {
	Type        string `json:"type"`
	Bridge      string `json:"bridge"`
	MTU         int    `json:"mtu,omitempty"`
	HairpinMode bool   `json:"hairpinMode"`
	PromiscMode bool   `json:"promiscMode,omitempty"`
	// IsDefaultGateway makes the bridge plugin add the default route; a second one in ipam fails.
	IsDefaultGateway bool `json:"isDefaultGateway"`
	// Where a node got another range, the bridge gives up the old address.
	ForceAddress bool     `json:"forceAddress"`
	IPAM         ipamConf `json:"ipam"`
}

type ipamConf struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]rangeConf `json:"ranges"`
}

type rangeConf struct {
	Subnet string `json:"subnet"`
}

type pluginConf struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	// PolicySocket is the socket at which portmap (package hostport) announces the pod to agent/dataplane/netpol.
	PolicySocket string `json:"policySocket,omitempty"`
	// StateDir is the folder in which portmap records the pods' ports.
	StateDir string `json:"stateDir,omitempty"`
	// SourceCheck has portmap keep the pod from sending with other addresses, see agent/dataplane/podsource.
	SourceCheck bool `json:"sourceCheck,omitempty"`
	// Held are the node's ports that portmap leads to no pod.
	Held []hostport.Held `json:"held,omitempty"`
}

// renderConf is the CNI configuration of a node with these pod ranges.
func (n *Network) renderConf(ranges []netip.Prefix, mtu int, sourceCheck bool) ([]byte, error) {
	dirs := n.cfg.Dirs
	ipam := ipamConf{Type: "host-local", DataDir: dirs.CNIState()}
	for _, r := range ranges {
		ipam.Ranges = append(ipam.Ranges, []rangeConf{{Subnet: r.String()}})
	}
	bridge := bridgeConf{Type: "bridge", Bridge: Bridge, MTU: mtu, HairpinMode: true, IsDefaultGateway: true,
		ForceAddress: true, IPAM: ipam}
	n.cfg.CNI.apply(&bridge)
	plugins := []any{
		bridge,
		pluginConf{Type: "portmap", Capabilities: map[string]bool{"portMappings": true},
			PolicySocket: n.cfg.PolicySocket, StateDir: dirs.HostPorts(), SourceCheck: sourceCheck, Held: n.cfg.Held},
	}
	if !n.cfg.CNI.noBandwidth {
		plugins = append(plugins, pluginConf{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}})
	}
	raw, err := json.MarshalIndent(conflist{CNIVersion: "1.0.0", Name: "umiak", Plugins: plugins}, "", " ")
	return append(raw, '\n'), err
}

// writeConf puts the configuration in place unless it is there already: containerd reloads on every write.
func writeConf(dir string, raw []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	path := filepath.Join(dir, confName)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, raw) {
		return nil
	}
	return atomicfile.Write(path, raw, 0o600)
}

func removeConf(dir string) error {
	if err := os.Remove(filepath.Join(dir, confName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove CNI configuration: %w", err)
	}
	return nil
}
