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

// Type is the annotation with the name of a node's backend.
const Type = "flannel.alpha.coreos.com/backend-type"

// Backends that use tunnels, as flannel names them.
const (
	VXLAN     = "vxlan"
	WireGuard = "wireguard"
)

// Family holds the names of the annotations of one address family.
type Family struct {
	// Public is for the node's address, Overwrite for an address set by an administrator, Data for the backend's data.
	Public, Overwrite, Data string
}

// V4 and V6 are the two families.
var (
	V4 = Family{"flannel.alpha.coreos.com/public-ip", "flannel.alpha.coreos.com/public-ip-overwrite",
		"flannel.alpha.coreos.com/backend-data"}
	V6 = Family{"flannel.alpha.coreos.com/public-ipv6", "flannel.alpha.coreos.com/public-ipv6-overwrite",
		"flannel.alpha.coreos.com/backend-v6-data"}
)

// vni is the VXLAN network identifier of flannel, which umiak does not change.
const vni = 1

// maxData is the most bytes that are read; flannel writes fewer than 100.
const maxData = 4096

// End is the tunnel endpoint of a node.
type End struct {
	// Key has the 6 bytes of a MAC address (VXLAN) or the 32 bytes of a public key (WireGuard); empty for other
	// backends.
	Key string
	// Data is for flannel's backend. It is re-encoded and contains only checked fields; nil without a Key.
	Data json.RawMessage
}

// Parse parses the data of a backend. The zero End is the result for backends without tunnels.
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

// decode decodes one JSON object that has no fields unknown to into.
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
		return errors.New("data follows the JSON object")
	}
	return nil
}

// Shares reports whether a node may have the same key as another one: both have the same public address, and that is
// an internal address of the node, in own, so they are the same machine under two names. An external address may be
// that of a router.
func Shares(public, others string, own []netip.Addr) bool {
	at, err := netip.ParseAddr(public)
	return err == nil && public == others && slices.Contains(own, at.Unmap())
}
