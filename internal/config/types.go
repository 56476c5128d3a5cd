package config

import (
	"encoding"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

var (
	_ encoding.TextUnmarshaler = (*Port)(nil)
	_ encoding.TextUnmarshaler = (*PortRange)(nil)
	_ encoding.TextUnmarshaler = (*FileMode)(nil)
	_ encoding.TextUnmarshaler = (*Range)(nil)
)

// Port is a TCP or UDP port, 1 to 65535. Zero is no port.
type Port uint16

// UnmarshalText reads a decimal number.
func (p *Port) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a port, 1 to 65535", text)
	}
	*p = Port(n)
	return nil
}

// MarshalText returns the decimal number.
func (p Port) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String returns the decimal number.
func (p Port) String() string { return strconv.Itoa(int(p)) }

// PortRange is a range of ports, both ends included. The zero PortRange holds no port.
type PortRange struct{ utilnet.PortRange }

// UnmarshalText reads FIRST-LAST, FIRST+MORE or one port.
func (r *PortRange) UnmarshalText(text []byte) error {
	parsed, err := utilnet.ParsePortRange(string(text))
	if err != nil || parsed.Size == 0 {
		return fmt.Errorf("%q is not a range of ports such as 30000-32767", text)
	}
	r.PortRange = *parsed
	return nil
}

// MarshalText returns FIRST-LAST.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.PortRange.String()), nil }

// FileMode is the permissions of a file that its owner may read and write.
type FileMode fs.FileMode

// UnmarshalText reads an octal number, with or without the 0o of YAML 1.2.
func (m *FileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(string(text), "0o"), 8, 12)
	if err != nil || n&0o600 != 0o600 {
		return fmt.Errorf("%q is not a file mode such as 0600", text)
	}
	*m = FileMode(fs.FileMode(n).Perm())
	return nil
}

// MarshalText returns four octal digits.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// String returns four octal digits.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// Range is a range of addresses; a single address is a range of its own, and bits behind the prefix do not count.
type Range struct{ netip.Prefix }

// UnmarshalText reads a range or an address.
func (r *Range) UnmarshalText(text []byte) error {
	p, err := netip.ParsePrefix(string(text))
	if a, notRange := netip.ParseAddr(string(text)); err != nil && notRange == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil || p.Addr().Is4In6() {
		return fmt.Errorf("%q is not a range as 192.168.1.0/24", text)
	}
	r.Prefix = p.Masked()
	return nil
}

// Texts returns the texts of values, as of addresses or ranges.
func Texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
