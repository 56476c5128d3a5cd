package rules

import (
	"fmt"
	"io"
	"slices"
)

// DumpElems writes every element, a line each, sorted.
func (b *Builder) DumpElems(w io.Writer) {
	elems := slices.Collect(b.All())
	slices.SortFunc(elems, Elem.compare)
	for _, e := range elems {
		fmt.Fprintln(w, b.cfg.Line(e))
	}
}
