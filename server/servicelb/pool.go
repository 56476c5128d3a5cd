package servicelb

import (
	"fmt"
	"iter"
	"net/netip"
	"strings"
)

// Pool is a list of ranges of addresses.
type Pool []addrRange

type addrRange struct{ first, last netip.Addr }

// ParsePool reads addresses, prefixes such as 192.0.2.0/28, and ranges such as 192.0.2.10-192.0.2.20.
func ParsePool(in []string) (Pool, error) {
	var out Pool
	for _, s := range in {
		r, err := parseRange(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			if r.first.BitLen() == other.first.BitLen() && r.first.Compare(other.last) <= 0 && other.first.Compare(r.last) <= 0 {
				return nil, fmt.Errorf("%q overlaps %s-%s", s, other.first, other.last)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRange(s string) (addrRange, error) {
	bad := func() (addrRange, error) {
		return addrRange{}, fmt.Errorf("%q is not an address, a prefix such as 192.0.2.0/28 or a range such as 192.0.2.10-192.0.2.20", s)
	}
	var r addrRange
	if p, err := netip.ParsePrefix(s); err == nil {
		p = p.Masked()
		r = addrRange{p.Addr(), lastOf(p)}
	} else if a, b, isRange := strings.Cut(s, "-"); isRange {
		if r.first, err = netip.ParseAddr(strings.TrimSpace(a)); err != nil {
			return bad()
		}
		if r.last, err = netip.ParseAddr(strings.TrimSpace(b)); err != nil {
			return bad()
		}
	} else {
		if r.first, err = netip.ParseAddr(s); err != nil {
			return bad()
		}
		r.last = r.first
	}
	for _, a := range []netip.Addr{r.first, r.last} {
		if a.Is4In6() || a.Zone() != "" {
			return bad()
		}
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return r, fmt.Errorf("%q: %s cannot be reached by others", s, a)
		}
	}
	if r.first.BitLen() != r.last.BitLen() || r.last.Less(r.first) {
		return bad()
	}
	return r, nil
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
