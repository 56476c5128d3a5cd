package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// saved holds the data with which a node gives its pods a network before the API server answers.
type saved struct {
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	MTU      int            `json:"mtu"`
}

func (n *Network) savedPath() string { return filepath.Join(n.cfg.Dirs.Agent(), "network.json") }

func loadSaved(path string) (saved, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return saved{}, err
	}
	return parseSaved(raw)
}

func parseSaved(raw []byte) (saved, error) {
	var s saved
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return saved{}, fmt.Errorf("read saved network: %w", err)
	}
	if len(s.PodCIDRs) > 2 || s.MTU < 576 || s.MTU > 65535 {
		return saved{}, fmt.Errorf("read saved network: out of bounds")
	}
	for _, p := range s.PodCIDRs {
		if !p.IsValid() || p != p.Masked() {
			return saved{}, fmt.Errorf("read saved network: %v is not a range", p)
		}
	}
	return s, nil
}

// save writes only what has changed: flash wears.
func save(path string, s saved) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, raw) {
		return nil
	}
	return atomicfile.Write(path, raw, 0o600)
}
