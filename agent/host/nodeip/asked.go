package nodeip

import (
	"encoding"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Asked is one value of the setting node-ip: an address, or the name of an interface whose address is taken.
type Asked struct {
	Addr      netip.Addr // invalid for an interface
	Interface string     // "" for an address
}

var (
	_ encoding.TextUnmarshaler = (*Asked)(nil)
	_ fmt.Stringer             = Asked{}
)

// maxInterface is IFNAMSIZ of linux/if.h without the final zero, in bytes.
const maxInterface = 15

// UnmarshalText reads an address or the name of an interface. A name of digits and points alone is refused: it is a
// mistyped address.
func (a *Asked) UnmarshalText(text []byte) error {
	s := string(text)
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		*a = Asked{Addr: ip}
		return nil
	}
	if s == "" || len(s) > maxInterface || strings.ContainsAny(s, " \t/:%") || strings.Trim(s, "0123456789.") == "" {
		return fmt.Errorf("%q is not an IP address, nor the name of an interface", s)
	}
	*a = Asked{Interface: s}
	return nil
}

// String returns the address or the name.
func (a Asked) String() string {
	if a.Interface != "" {
		return a.Interface
	}
	return a.Addr.String()
}

// At returns the values for addresses.
func At(addrs ...netip.Addr) (out []Asked) {
	for _, a := range addrs {
		out = append(out, Asked{Addr: a.Unmap()})
	}
	return out
}

// addresses returns those among the values.
func addresses(asked []Asked) (out []netip.Addr) {
	for _, a := range asked {
		if a.Addr.IsValid() {
			out = append(out, a.Addr.Unmap())
		}
	}
	return out
}

// interfaces returns those among the values.
func interfaces(asked []Asked) (out []string) {
	for _, a := range asked {
		if a.Interface != "" {
			out = append(out, a.Interface)
		}
	}
	return out
}

// on returns the addresses that belong to one of the interfaces.
func on(list []address, interfaces []string) (out []address) {
	for _, a := range list {
		if slices.Contains(interfaces, a.Interface) {
			out = append(out, a)
		}
	}
	return out
}
