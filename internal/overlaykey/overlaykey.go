package overlaykey

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Type is the annotation with the backend of a node.
const Type = "flannel.alpha.coreos.com/backend-type"

// Backends with tunnels, as flannel names them.
const (
	VXLAN     = "vxlan"
	WireGuard = "wireguard"
)

// Family holds the annotations of one address family.
type Family struct {
	// Public is where the node is reached, Overwrite the same from an administrator, Data what its backend says.
	Public, Overwrite, Data string
}

// V4 and V6 are the two families.
var (
	V4 = Family{"flannel.alpha.coreos.com/public-ip", "flannel.alpha.coreos.com/public-ip-overwrite", "flannel.alpha.coreos.com/backend-data"}
	V6 = Family{"flannel.alpha.coreos.com/public-ipv6", "flannel.alpha.coreos.com/public-ipv6-overwrite", "flannel.alpha.coreos.com/backend-v6-data"}
)

// vni is that of flannel's networks, which is no setting of umiak's.
const vni = 1

// maxData bounds what is read; flannel writes under 100 bytes.
const maxData = 4096

// End is the end of a node's tunnel.
type End struct {
	// Key is the 6 bytes of a MAC address (VXLAN) or the 32 of a public key (WireGuard), empty with other backends.
	Key string
	// Data is for flannel's backend. It is encoded anew and holds nothing but what has been checked; nil without a Key.
	Data json.RawMessage
}

// Parse reads the data of a backend.
func Parse(backend, data string) (End, error) {
	switch backend {
	case VXLAN:
		var d struct {
			VNI     uint32
			VtepMAC string
		}
		if err := decode(data, &d); err != nil {
			return End{}, err
		}
		mac, err := net.ParseMAC(d.VtepMAC)
		switch {
		case err != nil || len(mac) != 6:
			return End{}, errors.New("VtepMAC is not a MAC address")
		case mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)):
			return End{}, errors.New("VtepMAC is not the address of one machine")
		case d.VNI != vni:
			return End{}, fmt.Errorf("VNI is not %d", vni)
		}
		d.VtepMAC = mac.String()
		raw, err := json.Marshal(d)
		return End{Key: string(mac), Data: raw}, err
	case WireGuard:
		var d struct {
			PublicKey string
			Port      uint16
		}
		if err := decode(data, &d); err != nil {
			return End{}, err
		}
		key, err := base64.StdEncoding.DecodeString(d.PublicKey)
		if err != nil || len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
			return End{}, errors.New("PublicKey is not a WireGuard key")
		}
		d.PublicKey = base64.StdEncoding.EncodeToString(key)
		raw, err := json.Marshal(d)
		return End{Key: string(key), Data: raw}, err
	}
	return End{}, nil
}

// decode reads one JSON object that has no other fields than into.
func decode(data string, into any) error {
	if len(data) > maxData {
		return fmt.Errorf("it is longer than %d bytes", maxData)
	}
	d := json.NewDecoder(strings.NewReader(data))
	d.DisallowUnknownFields()
	if d.Decode(into) != nil {
		return errors.New("it is not what the backend writes")
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows it")
	}
	return nil
}

// Shares reports whether a node may have the key of another one that is reached at the same address: it is the same machine
// under another name, and that address is one of its internal ones, own. An external one may be a router's.
func Shares(public, others string, own []netip.Addr) bool {
	at, err := netip.ParseAddr(public)
	return err == nil && public == others && slices.Contains(own, at.Unmap())
}
