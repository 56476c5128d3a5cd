package rules

import (
	"fmt"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Line writes an element as in a dump.
func (c Config) Line(e Elem) string {
	s := e.Spec()
	var line string
	if s.Ranges {
		half := len(e.Key) / 2
		line = ruleset.Decode(c.Family, s.Key, e.Key[:half]) + "-" +
			ruleset.Decode(c.Family, s.Key[len(s.Key)-1:], e.Key[len(e.Key)-Addr.Len(c.Family):])
	} else {
		line = ruleset.Decode(c.Family, s.Key, e.Key)
	}
	if len(s.Val) > 0 {
		line += " : " + ruleset.Decode(c.Family, s.Val, e.Val)
	}
	if e.Comment != "" {
		line += fmt.Sprintf(" comment %q", e.Comment)
	}
	return s.Name + " { " + line + " }"
}
