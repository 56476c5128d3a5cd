package overlaykey

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// FuzzParse checks that flannel decodes accepted data as the key that was compared.
func FuzzParse(f *testing.F) {
	f.Add(VXLAN, `{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"}`)
	f.Add(VXLAN, `{"VNI":1,"VtepMAC":"AA-00-00-00-00-01","vtepmac":"01:00:5e:00:00:01"}`)
	f.Add(VXLAN, `{"VNI":1,"VtepMAC":"02:00:5e:10:00:00:00:01"}`)
	f.Add(VXLAN, `{}`)
	f.Add(WireGuard, `{"PublicKey":"AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=","Port":51820}`)
	f.Add(WireGuard, `{"PublicKey":"AQIDBAUGBwgJCgsMDQ4P\nEBESExQVFhcYGRobHB0eHyB="}`)
	f.Add("host-gw", `null`)
	f.Fuzz(func(t *testing.T, backend, data string) {
		e, err := Parse(backend, data)
		if err != nil || e.Key == "" {
			if e.Data != nil {
				t.Fatalf("data without a key: %s", e.Data)
			}
			return
		}
		var d struct{ VtepMAC, PublicKey string }
		if err := json.Unmarshal(e.Data, &d); err != nil {
			t.Fatal(err)
		}
		switch backend {
		case VXLAN:
			if mac, err := net.ParseMAC(d.VtepMAC); err != nil || string(mac) != e.Key || len(mac) != 6 ||
				mac[0]&1 != 0 || d.PublicKey != "" {
				t.Fatalf("%s for key %x", e.Data, e.Key)
			}
		case WireGuard:
			if k, err := wgtypes.ParseKey(d.PublicKey); err != nil || string(k[:]) != e.Key || d.VtepMAC != "" {
				t.Fatalf("%s for key %x", e.Data, e.Key)
			}
		default:
			t.Fatalf("backend %q has the key %x", backend, e.Key)
		}
		if again, err := Parse(backend, string(e.Data)); err != nil || again.Key != e.Key {
			t.Fatalf("%s is read as %x, %v", e.Data, again.Key, err)
		}
	})
}

func TestShares(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for _, c := range []struct {
		public, others string
		want           bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.2", "192.0.2.2", false}, // an address of the other node only
		{"", "", false},
	} {
		if got := Shares(c.public, c.others, own); got != c.want {
			t.Errorf("%q, %q: %v", c.public, c.others, got)
		}
	}
}
