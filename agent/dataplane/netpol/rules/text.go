package rules

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Dump writes everything that is wanted of a family: chains as nft does, then elements, a line each.
func (b *Builder) Dump(w io.Writer, f ruleset.Family) {
	chains := slices.SortedFunc(b.Chains(f), func(x, y ruleset.Chain) int { return strings.Compare(x.Name, y.Name) })
	ruleset.DumpChains(w, chains)
	for _, name := range b.SetNames() {
		spec := b.out.sets[name].spec
		for _, e := range slices.SortedFunc(b.Elems(f, name), Elem.Compare) {
			var line string
			if spec.Ranges {
				half := len(e.Key) / 2
				line = ruleset.Decode(f, spec.Key, e.Key[:half]) + " to " + ruleset.Decode(f, spec.Key, e.Key[half:])
			} else {
				line = ruleset.Decode(f, spec.Key, e.Key)
			}
			if e.Val != "" {
				line += " : " + ruleset.Decode(f, spec.Val, e.Val)
			}
			fmt.Fprintf(w, "%s { %s }\n", name, line)
		}
	}
}
