package rules

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// A span is a range of addresses of one family, both ends included.
type span struct{ from, to netip.Addr }

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	return span{p.Addr(), ruleset.LastAddr(p)}
}

// ranges are the addresses of the blocks without their exceptions: those in allowed that are not in barred. Both are in
// order and without overlap.
//
// The kernel keeps a range as the prefixes that cover it, up to 250 for what lies between two exceptions in IPv6, and
// the time that it takes grows with the square of their number. So exceptions are a set of their own where that takes
// fewer.
func ranges(blocks []Peer) (allowed, barred []span) {
	var whole []span
	for _, b := range blocks {
		block := spanOf(b.Block)
		var except []span
		for _, e := range b.Except {
			if e.IsValid() && e.Addr().Is4() == block.from.Is4() {
				except = append(except, spanOf(e))
			}
		}
		whole = append(whole, block)
		allowed = append(allowed, subtract([]span{block}, merge(except))...)
	}
	whole, allowed = merge(whole), merge(allowed)
	barred = subtract(whole, allowed)
	if len(allowed) > 0 && prefixes(whole)+prefixes(barred) < prefixes(allowed) {
		return whole, barred
	}
	return allowed, nil
}

// merge puts spans in order, as few as can be. It uses up its argument.
func merge(in []span) []span {
	slices.SortFunc(in, func(a, b span) int {
		if c := a.from.Compare(b.from); c != 0 {
			return c
		}
		return a.to.Compare(b.to)
	})
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if next := last.to.Next(); last.from.Is4() == s.from.Is4() &&
				(!next.IsValid() || s.from.Compare(next) <= 0) {
				if s.to.Compare(last.to) > 0 {
					last.to = s.to
				}
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// subtract cuts spans out of others. Both are in order and without overlap; each is gone through once.
func subtract(in, cut []span) []span {
	var out []span
	for _, s := range in {
		for len(cut) > 0 && cut[0].to.Less(s.from) {
			cut = cut[1:]
		}
		left := true
		for _, c := range cut {
			if s.to.Less(c.from) {
				break
			}
			if s.from.Less(c.from) {
				out = append(out, span{s.from, c.from.Prev()})
			}
			if left = c.to.Less(s.to); !left {
				break
			}
			s.from = c.to.Next()
		}
		if left {
			out = append(out, s)
		}
	}
	return out
}

// prefixes returns the number of prefixes that cover the spans.
func prefixes(all []span) int {
	n := 0
	for _, s := range all {
		n += s.prefixes()
	}
	return n
}

func (s span) prefixes() int {
	from, to := wordsOf(s.from), wordsOf(s.to)
	// Where the ends part: below that bit, what is on the left goes up to the last address and what is on the right
	// begins with the first.
	below := 127 - bits.LeadingZeros64(from.hi^to.hi)
	if from.hi == to.hi {
		if from.lo == to.lo {
			return 1
		}
		below = 63 - bits.LeadingZeros64(from.lo^to.lo)
	}
	left, right := below128(words{^from.hi, ^from.lo}, below), below128(to, below)
	if all := below128(words{^uint64(0), ^uint64(0)}, below); left == all && right == all {
		return 1
	}
	return left.next() + right.next()
}

type words struct{ hi, lo uint64 }

func wordsOf(a netip.Addr) words {
	b := a.As16()
	return words{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// below128 keeps the lowest bits.
func below128(w words, n int) words {
	if n < 64 {
		return words{0, w.lo & (1<<n - 1)}
	}
	return words{w.hi & (1<<(n-64) - 1), w.lo}
}

// next counts the bits that are set in the number after this one.
func (w words) next() int {
	lo, carry := bits.Add64(w.lo, 1, 0)
	return bits.OnesCount64(lo) + bits.OnesCount64(w.hi+carry)
}
