package nodecmd

import (
	"testing"
	"time"
)

func TestDays(t *testing.T) {
	for text, want := range map[string]time.Duration{"14d": 14 * 24 * time.Hour, "0d": 0, "12h": 12 * time.Hour,
		"1h30m": 90 * time.Minute} {
		if got, err := days(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "-1h", "14", "14 days", "99999d"} {
		if got, err := days(text); err == nil {
			t.Errorf("%q became %s", text, got)
		}
	}
}
