package status

// Rules describes a part that keeps rules in the kernel.
type Rules struct {
	Detail  string   // what the rules are for, in numbers
	Ready   bool     // the rules are written
	Error   string   // why the last attempt to write failed; empty if it did not
	Warning string   // what the rules do not cover; empty if they cover everything
	None    bool     // there is nothing to write rules for
	Refused []string // what objects ask for and do not get
}

// Rows returns a row for the rules and one for each refusal.
func (r Rules) Rows() []Row {
	row := Row{Name: "rules", State: "in force", Detail: r.Detail}
	switch {
	case r.Error != "":
		row.State, row.Detail = "failing", r.Error
	case !r.Ready:
		row.State = "starting"
	case r.Warning != "":
		row.State, row.Detail = "incomplete", r.Warning
	case r.None:
		row.State, row.Detail = "none", ""
	}
	rows := []Row{row}
	for _, why := range r.Refused {
		rows = append(rows, Row{Name: "refused", Detail: why})
	}
	return rows
}
