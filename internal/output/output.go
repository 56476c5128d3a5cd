// Package output prints what commands show: tables for people and JSON for programs, each in one form.
//
// Commands and the packages that print for them call it. It imports nothing of umiak.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// NewTable returns a writer that aligns columns separated by tabs, two spaces apart, and prints the titles if there are
// any. Nothing is seen before Flush.
func NewTable(w io.Writer, titles ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(titles) > 0 {
		_, _ = fmt.Fprintln(t, strings.Join(titles, "\t")) // Flush returns the error of the writer below
	}
	return t
}

// JSON writes a value, indented by two spaces, with a line end.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
