package ruleset

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Table is a table as a whole: what a package that writes few rules hands over.
type Table struct {
	Family Family
	Name   string
	Sets   []SetSpec
	Chains []Chain
	Elems  []Elem
}

// SetSpec describes a set or map.
type SetSpec struct {
	Name string
	Key  []Field
	// Val is the value that a map returns; empty for a set.
	Val []Field
	// Ranges states that keys are ranges.
	Ranges bool
	// Dynamic states that packets add the elements; a reconciler leaves them alone. They time out unless Permanent.
	Dynamic   bool
	Permanent bool
	// Timeout is the lifetime of an element whose rule gives none, of a Dynamic set; 0: every rule gives one.
	Timeout time.Duration
}

// Elem is an element of a set or map. Key and Val are encoded as the kernel stores them; the key of a range is its
// first key followed by its last.
type Elem struct {
	Set, Key, Val string
	// Comment is shown by nft; empty for none. The kernel stores its first 127 bytes.
	Comment string
}

// Compare orders elements by set, then by key.
func (e Elem) Compare(f Elem) int {
	return cmp.Or(strings.Compare(e.Set, f.Set), strings.Compare(e.Key, f.Key))
}

// Hook is the place at which a base chain sees packets.
type Hook struct {
	Type     string // nat or filter
	Name     string // prerouting, input, forward, output, postrouting or ingress
	Priority int32
	// Device is the interface of an ingress hook; empty for the others.
	Device string
}

// Chain is a chain and its rules. Hook is nil for a chain that other chains jump to.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
	// Unordered states that any order of the rules means the same: a reconciler accepts the kernel's order.
	Unordered bool
}

// Rule is a list of statements, which are executed in order until one does not match.
type Rule []Stmt

// String writes the rule in nft's syntax.
func (r Rule) String() string {
	parts := make([]string, len(r))
	for i, s := range r {
		parts[i] = fmt.Sprint(s)
	}
	return strings.Join(parts, " ")
}

// DumpChains writes chains in nft's syntax.
func DumpChains(w io.Writer, chains []Chain) {
	for _, c := range chains {
		fmt.Fprintf(w, "chain %s {\n", c.Name)
		if c.Hook != nil {
			fmt.Fprintf(w, "\ttype %s hook %s priority %d\n", c.Hook.Type, c.Hook.Name, c.Hook.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(w, "\t%s\n", r)
		}
		fmt.Fprintln(w, "}")
	}
}

// Change is the difference between two states of a table, in the order in which it has to be made. An element whose
// value changes is in both Del and Add.
type Change struct {
	AddSets []SetSpec
	// SetChains are the new chains and those that get other rules.
	SetChains []Chain
	Del, Add  []Elem
	DelChains []string
	DelSets   []SetSpec
	// Specs describes the sets of Del and Add by name.
	Specs map[string]SetSpec
}

// Empty reports whether there is nothing to do.
func (c Change) Empty() bool {
	return len(c.AddSets)+len(c.SetChains)+len(c.Del)+len(c.Add)+len(c.DelChains)+len(c.DelSets) == 0
}

// Ranges splits the change in two: the new sets of ranges with their elements, and the rest.
func (c Change) Ranges() (ranges, rest Change) {
	if !slices.ContainsFunc(c.AddSets, func(s SetSpec) bool { return s.Ranges }) {
		return Change{}, c
	}
	added := map[string]bool{}
	rest, ranges.Specs = c, c.Specs
	rest.AddSets, rest.Add = nil, nil
	for _, s := range c.AddSets {
		if added[s.Name] = s.Ranges; s.Ranges {
			ranges.AddSets = append(ranges.AddSets, s)
		} else {
			rest.AddSets = append(rest.AddSets, s)
		}
	}
	for _, e := range c.Add {
		if added[e.Set] {
			ranges.Add = append(ranges.Add, e)
		} else {
			rest.Add = append(rest.Add, e)
		}
	}
	return ranges, rest
}
