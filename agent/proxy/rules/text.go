package rules

import (
	"fmt"
	"io"
	"slices"
)

// Line writes an element as in a dump.
func (c Config) Line(e Elem) string {
	s := e.Spec()
	line := ""
	if s.Ranges {
		half := len(e.Key) / 2
		line = Decode(c.Family, s.Key, e.Key[:half]) + "-" + Decode(c.Family, s.Key[len(s.Key)-1:], e.Key[len(e.Key)-Addr.Len(c.Family):])
	} else {
		line = Decode(c.Family, s.Key, e.Key)
	}
	if len(s.Val) > 0 {
		line += " : " + Decode(c.Family, s.Val, e.Val)
	}
	if e.Comment != "" {
		line += fmt.Sprintf(" comment %q", e.Comment)
	}
	return s.Name + " { " + line + " }"
}

// DumpElems writes every element, a line each, sorted.
func (b *Builder) DumpElems(w io.Writer) {
	elems := slices.Collect(b.All())
	slices.SortFunc(elems, Elem.compare)
	for _, e := range elems {
		fmt.Fprintln(w, b.cfg.Line(e))
	}
}

// DumpChains writes chains much as nft does.
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
