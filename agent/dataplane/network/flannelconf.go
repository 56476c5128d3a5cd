package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// FlannelConf is what a file in the format of flannel's net-conf.json sets of the backend. The zero value sets nothing.
type FlannelConf struct {
	file     string
	backend  string // Backend.Type as flannel names it; "" for that of the cluster
	networks []netip.Prefix
	options  map[string]json.RawMessage // fields of Backend
}

// backendOptions are the fields of Backend that a node may set, each with the backends that have it. Ports, the network
// identifier and keys are the cluster's.
var backendOptions = map[string][]string{
	"MTU":                         {VXLAN, WireGuard},
	"DirectRouting":               {VXLAN},
	"PersistentKeepaliveInterval": {WireGuard},
}

// The bounds of an MTU, in bytes: that of IPv4, RFC 791, and the largest packet.
const minMTU, maxMTU = 576, 65535

// ReadFlannelConf reads and checks a file. An empty name is the zero FlannelConf.
func ReadFlannelConf(file string) (c FlannelConf, err error) {
	if file == "" {
		return c, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if c, err = parseFlannelConf(raw); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	c.file = file
	return c, nil
}

func parseFlannelConf(raw []byte) (c FlannelConf, err error) {
	var text struct {
		Network, IPv6Network                   string
		EnableIPv4, EnableIPv6, EnableNFTables *bool // decided by cluster-cidr and umiak
		Backend                                map[string]json.RawMessage
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&text); err != nil {
		return c, fmt.Errorf("not a flannel configuration: %w", err)
	}
	for _, n := range []string{text.Network, text.IPv6Network} {
		if n == "" {
			continue
		}
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return c, fmt.Errorf("%q is not an address range", n)
		}
		c.networks = append(c.networks, p.Masked())
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(text.Backend)) {
		v := text.Backend[name]
		if name == "Type" {
			errs = append(errs, json.Unmarshal(v, &c.backend))
			continue
		}
		if _, known := backendOptions[name]; !known {
			errs = append(errs, fmt.Errorf("field Backend.%s cannot be set: a node may set %s", name,
				strings.Join(slices.Sorted(maps.Keys(backendOptions)), ", ")))
			continue
		}
		if err := checkOption(name, v); err != nil {
			errs = append(errs, fmt.Errorf("field Backend.%s: %w", name, err))
		}
	}
	delete(text.Backend, "Type")
	c.options = text.Backend
	return c, errors.Join(errs...)
}

// checkOption checks the value of a field of Backend.
func checkOption(name string, v json.RawMessage) error {
	if name == "DirectRouting" {
		return json.Unmarshal(v, new(bool))
	}
	var n int
	if err := json.Unmarshal(v, &n); err != nil {
		return err
	}
	if name == "MTU" && n != 0 && n < minMTU || n < 0 || n > maxMTU {
		return fmt.Errorf("%d is out of bounds", n)
	}
	return nil
}

// check returns what does not fit the cluster. backend is one of the constants of this package.
func (c FlannelConf) check(backend, flannelName string, cluster []netip.Prefix) error {
	var errs []error
	if c.backend != "" && c.backend != backend && c.backend != flannelName {
		errs = append(errs, fmt.Errorf("Backend.Type is %q, and flannel-backend of the cluster is %s", c.backend, backend))
	}
	for _, p := range c.networks {
		if !slices.Contains(cluster, p) {
			errs = append(errs, fmt.Errorf("%s is not the cluster's range of pods, cluster-cidr %v", p, cluster))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.options)) {
		if !slices.Contains(backendOptions[name], backend) {
			errs = append(errs, fmt.Errorf("field Backend.%s has no meaning with flannel-backend %s", name, backend))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("flannel-conf: %s: %w", c.file, err)
	}
	return nil
}
