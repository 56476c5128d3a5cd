package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFlannelConf(t *testing.T) {
	cluster := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	for _, c := range []struct{ backend, text, want string }{ // want: part of the error, or the backend's configuration
		{VXLAN, `{}`, `{"Type":"vxlan"}`},
		{VXLAN, `{"Network": "10.42.0.0/16", "EnableIPv6": false, "Backend": {"Type": "vxlan", "MTU": 1400, "DirectRouting": true}}`,
			`{"DirectRouting":true,"MTU":1400,"Type":"vxlan"}`},
		{WireGuard, `{"Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": 25}}`,
			`{"PersistentKeepaliveInterval":25,"Type":"wireguard"}`},
		{WireGuard, `{"Backend": {"Type": "wireguard-native"}}`, `{"Type":"wireguard"}`},
		{VXLAN, `{"Network": "10.0.0.0/8"}`, "10.0.0.0/8 is not the cluster's range of pods"},
		{VXLAN, `{"Backend": {"Type": "host-gw"}}`, `Backend.Type is "host-gw", and flannel-backend of the cluster is vxlan`},
		{VXLAN, `{"Backend": {"PersistentKeepaliveInterval": 25}}`, "has no meaning with flannel-backend vxlan"},
		{VXLAN, `{"Backend": {"VNI": 7}}`, "Backend.VNI cannot be set"},
		{VXLAN, `{"Backend": {"MTU": 100}}`, "Backend.MTU: 100 is out of bounds"},
		{VXLAN, `{"Backend": {"MTU": "big"}}`, "Backend.MTU"},
		{VXLAN, `{"SubnetLen": 20}`, "SubnetLen"},
		{VXLAN, `[]`, "not a flannel configuration"},
	} {
		file := filepath.Join(t.TempDir(), "net-conf.json")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := ReadFlannelConf(file)
		name := (&Network{cfg: Config{Backend: c.backend}}).flannelBackend()
		if err == nil {
			err = conf.check(c.backend, name, cluster)
		}
		got := ""
		if err == nil {
			made, err := flannelConfig(name, cluster, conf.options)
			if err != nil {
				t.Fatal(err)
			}
			got = string(made.Backend)
		}
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && got != c.want {
			t.Errorf("%s %s: %s, %v", c.backend, c.text, got, err)
		}
	}
	if _, err := ReadFlannelConf("/nope"); err == nil {
		t.Error("a file that is missing is accepted")
	}
}
