package servicelb

import (
	"encoding"
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// Pool is the addresses for Services of type LoadBalancer. An empty Pool stands for the addresses of the nodes.
type Pool []Range

// Range is a range of addresses, both ends included.
type Range struct {
	first, last netip.Addr
	text        string // as it was written
}

var _ encoding.TextUnmarshaler = (*Range)(nil)

// UnmarshalText reads an address, a prefix such as 192.0.2.0/28 or a range such as 192.0.2.10-192.0.2.20.
func (r *Range) UnmarshalText(text []byte) error {
	s := string(text)
	bad := fmt.Errorf("%q is not an address, a prefix such as 192.0.2.0/28 or a range such as 192.0.2.10-192.0.2.20", s)
	out := Range{text: s}
	first, last, isRange := strings.Cut(s, "-")
	if p, err := netip.ParsePrefix(s); err == nil {
		p = p.Masked()
		out.first, out.last = p.Addr(), lastOf(p)
	} else if out.first, err = netip.ParseAddr(strings.TrimSpace(first)); err != nil {
		return bad
	} else if out.last = out.first; isRange {
		if out.last, err = netip.ParseAddr(strings.TrimSpace(last)); err != nil {
			return bad
		}
	}
	for _, a := range []netip.Addr{out.first, out.last} {
		if a.Is4In6() || a.Zone() != "" {
			return bad
		}
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("%q: %s cannot be reached by others", s, a)
		}
	}
	if out.first.BitLen() != out.last.BitLen() || out.last.Less(out.first) {
		return bad
	}
	*r = out
	return nil
}

// MarshalText returns the text that the range was read from.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.text), nil }

// String returns the text that the range was read from.
func (r Range) String() string { return r.text }

// Check returns an error where two ranges overlap.
func (p Pool) Check() error {
	for i, r := range p {
		for _, other := range p[:i] {
			if r.first.BitLen() == other.first.BitLen() && r.first.Compare(other.last) <= 0 && other.first.Compare(r.last) <= 0 {
				return fmt.Errorf("%q overlaps %s-%s", r.text, other.first, other.last)
			}
		}
	}
	return nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// has says whether an address is in the pool.
func (p Pool) has(a netip.Addr) bool {
	for _, r := range p {
		if r.first.BitLen() == a.BitLen() && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0 {
			return true
		}
	}
	return false
}

// all yields the addresses of one family in order.
func (p Pool) all(v4 bool) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, r := range p {
			if r.first.Is4() != v4 {
				continue
			}
			for a := r.first; a.IsValid() && a.Compare(r.last) <= 0; a = a.Next() {
				if !yield(a) {
					return
				}
			}
		}
	}
}
