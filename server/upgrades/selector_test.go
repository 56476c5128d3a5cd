package upgrades

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func TestParseSelector(t *testing.T) {
	for text, c := range map[string]struct{ in, out labels.Set }{
		"site=lab":         {labels.Set{"site": "lab"}, labels.Set{"site": "roof"}},
		"site!=lab":        {labels.Set{}, labels.Set{"site": "lab"}},
		"site in (lab,a)":  {labels.Set{"site": "a"}, labels.Set{"site": "b"}},
		"site notin (lab)": {labels.Set{"site": "a"}, labels.Set{"site": "lab"}},
		"gpu,site==lab":    {labels.Set{"gpu": "", "site": "lab"}, labels.Set{"site": "lab"}},
		"!gpu":             {labels.Set{}, labels.Set{"gpu": "1"}},
	} {
		parsed, err := ParseSelector(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		s, err := metav1.LabelSelectorAsSelector(parsed)
		if err != nil || !s.Matches(c.in) || s.Matches(c.out) {
			t.Errorf("%s became %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"site>1", "a=b=c"} {
		if s, err := ParseSelector(text); err == nil {
			t.Errorf("%s became %v", text, s)
		}
	}
}
