package pki

import (
	"context"

	"github.com/umiak-io/umiak/internal/status"
)

// Section returns the section Certificates of `umiak status`.
func (p *PKI) Section(context.Context) status.Section {
	out := status.Section{Name: "Certificates"}
	for _, r := range p.Rotations() {
		out.Rows = append(out.Rows, status.Row{Name: "rotation of " + r.Name, State: "under way",
			Detail: "old and new are trusted; `umiak certificate rotate-ca --status` says what comes next"})
	}
	for _, c := range p.Certificates() {
		row := status.Row{Name: c.Name, State: "ends " + c.Ends.UTC().Format("2006-01-02")}
		switch {
		case c.Error != "":
			row.Detail = c.Error
		case !c.Renews.IsZero():
			row.Detail = "renewed by itself on " + c.Renews.UTC().Format("2006-01-02")
		}
		out.Rows = append(out.Rows, row)
	}
	return out
}
