package comparison

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		was, is []float64
		more    bool
		want    string
	}{
		"equal":                                {[]float64{1, 1, 1}, []float64{1, 1, 1}, false, same},
		"within three per cent":                {[]float64{100, 100, 100}, []float64{103, 103, 103}, false, same},
		"beyond":                               {[]float64{100, 100, 100}, []float64{104, 104, 104}, false, worse},
		"beyond, where more is better":         {[]float64{100, 100, 100}, []float64{104, 104, 104}, true, better},
		"less":                                 {[]float64{100, 100, 100}, []float64{90, 90, 90}, false, better},
		"less, where more is better":           {[]float64{100, 100, 100}, []float64{90, 90, 90}, true, worse},
		"within the spread of the other build": {[]float64{80, 100, 120}, []float64{119, 119, 119}, false, same},
		"within the spread of this one":        {[]float64{100, 100, 100}, []float64{100, 115, 140}, false, same},
		"an outlier does not make a median": {[]float64{100, 100, 100, 100, 100}, []float64{100, 100, 100, 100, 900},
			false, same},
		"from nothing": {[]float64{0, 0, 0}, []float64{1, 1, 1}, false, worse},
		"new":          {nil, []float64{1}, false, added},
		"gone":         {[]float64{1}, nil, false, gone},
	} {
		if got := (Comparison{Was: c.was, Is: c.is, More: c.more}).verdict(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestCompareKeepsTheOrderAndPairsByNameAndUnit(t *testing.T) {
	r := func(v float64, names ...string) (out []Row) {
		for _, n := range names {
			name, unit, _ := strings.Cut(n, "/")
			out = append(out, Row{Name: name, Unit: unit, Value: v, More: name == "rate"})
		}
		return out
	}
	got := Compare(
		[][]Row{r(10, "rate/1", "old/s", "time/s", "time/ms"), r(12, "rate/1", "old/s", "time/s", "time/ms")},
		[][]Row{r(20, "time/s", "rate/1", "time/ms", "young/s"), r(20, "time/s", "rate/1", "time/ms")})
	var text []string
	for _, c := range got {
		text = append(text, c.Name+"/"+c.Unit+" "+c.Verdict)
	}
	const want = "time/s worse, rate/1 better, time/ms worse, young/s new, old/s gone"
	if s := strings.Join(text, ", "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	if c := got[0].change(); c != "+100.0%" {
		t.Errorf("change %s", c)
	}
	if s := Spread([]float64{3, 1, 2}); s != 1 {
		t.Errorf("spread %v", s)
	}
}

func TestTurns(t *testing.T) {
	var order []string
	measured := func(name string) Turn {
		return func(context.Context) ([]Row, error) {
			order = append(order, name)
			return []Row{{Name: name}}, nil
		}
	}
	was, is, err := Take(t.Context(), 3, measured("a"), measured("b"))
	if err != nil || len(was) != 3 || len(is) != 3 || strings.Join(order, "") != "ababab" {
		t.Errorf("%v: %v, %v, %v", order, was, is, err)
	}
	broken := errors.New("broken")
	if _, _, err := Take(t.Context(), 3, measured("a"), func(context.Context) ([]Row, error) {
		return nil, broken
	}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
