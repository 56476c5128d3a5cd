package status_test

import (
	"reflect"
	"testing"

	"github.com/umiak-io/umiak/internal/status"
)

func TestRules(t *testing.T) {
	const detail = "2 policies"
	for name, c := range map[string]struct {
		rules status.Rules
		want  []status.Row
	}{
		"in force": {status.Rules{Ready: true}, []status.Row{{Name: "rules", State: "in force", Detail: detail}}},
		"starting": {status.Rules{}, []status.Row{{Name: "rules", State: "starting", Detail: detail}}},
		"failing": {status.Rules{Error: "no room"},
			[]status.Row{{Name: "rules", State: "failing", Detail: "no room"}}},
		"incomplete": {status.Rules{Ready: true, Warning: "no IPv6"},
			[]status.Row{{Name: "rules", State: "incomplete", Detail: "no IPv6"}}},
		"none": {status.Rules{Ready: true, None: true}, []status.Row{{Name: "rules", State: "none"}}},
		"refused": {status.Rules{Ready: true, Refused: []string{"a", "b"}}, []status.Row{
			{Name: "rules", State: "in force", Detail: detail}, {Name: "refused", Detail: "a"},
			{Name: "refused", Detail: "b"},
		}},
	} {
		c.rules.Detail = detail
		if got := c.rules.Rows(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
