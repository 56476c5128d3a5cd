package cluster

import (
	"maps"
	"testing"
)

func TestParseMoved(t *testing.T) {
	r, err := ParseMoved([]string{"s2=10.1.0.2", "s3=fd00::3"})
	if want := map[string]string{"s2": "10.1.0.2", "s3": "fd00::3"}; err != nil || !maps.Equal(r.Addresses, want) {
		t.Errorf("got %v, %v", r, err)
	}
	for _, arg := range []string{"s2", "=10.1.0.2", "s2=", ""} {
		if r, err := ParseMoved([]string{"s1=10.1.0.1", arg}); err == nil {
			t.Errorf("%q became %v", arg, r)
		}
	}
}
