package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
)

// CNIConf is what a file in the format of flannel's CNI configuration sets of the node's. The zero value sets nothing.
type CNIConf struct {
	// hairpin and promiscuous are options of the bridge; nil leaves them as they are.
	hairpin, promiscuous *bool
	mtu                  int  // of the pods' interfaces, in bytes; 0 leaves that of the backend
	noBandwidth          bool // the plugin bandwidth is left out
}

// ReadCNIConf reads and checks a file. An empty name is the zero CNIConf.
func ReadCNIConf(file string) (c CNIConf, err error) {
	if file == "" {
		return c, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if c, err = parseCNIConf(raw); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func parseCNIConf(raw []byte) (c CNIConf, err error) {
	var list struct {
		Name, CNIVersion string
		DisableCheck     bool
		Plugins          []json.RawMessage
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return c, fmt.Errorf("not a CNI configuration list: %w", err)
	}
	c.noBandwidth = true
	var errs []error
	found := false
	for _, p := range list.Plugins {
		var plugin struct {
			Type     string
			Delegate map[string]json.RawMessage
		}
		if err := json.Unmarshal(p, &plugin); err != nil {
			return c, fmt.Errorf("read plugin: %w", err)
		}
		switch plugin.Type {
		case "flannel":
			found = true
			errs = append(errs, c.bridge(plugin.Delegate))
		case "portmap": // the node's own always runs, with its own configuration
		case "bandwidth":
			c.noBandwidth = false
		default:
			errs = append(errs, fmt.Errorf("there is no plugin %q: it may have flannel, portmap and bandwidth; for others, "+
				"bring the network of the pods with flannel-backend none", plugin.Type))
		}
	}
	if !found {
		errs = append(errs, errors.New("it has no plugin of type flannel"))
	}
	return c, errors.Join(errs...)
}

// bridge reads the options that flannel's plugin hands on to the bridge.
func (c *CNIConf) bridge(options map[string]json.RawMessage) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(options)) {
		var err error
		switch value := options[name]; name {
		case "hairpinMode":
			err = json.Unmarshal(value, &c.hairpin)
		case "promiscMode":
			err = json.Unmarshal(value, &c.promiscuous)
		case "mtu":
			if err = json.Unmarshal(value, &c.mtu); err == nil && (c.mtu < minMTU || c.mtu > maxMTU) {
				err = fmt.Errorf("%d is out of bounds", c.mtu)
			}
		case "isDefaultGateway", "forceAddress":
			if string(value) != "true" {
				err = errors.New("it is always true")
			}
		default:
			err = errors.New("it cannot be set: hairpinMode, promiscMode and mtu can")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delegate.%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// apply changes the bridge's configuration.
func (c CNIConf) apply(b *bridgeConf) {
	if c.hairpin != nil {
		b.HairpinMode = *c.hairpin
	}
	if c.promiscuous != nil {
		b.PromiscMode = *c.promiscuous
	}
	if c.mtu != 0 {
		b.MTU = c.mtu
	}
}
