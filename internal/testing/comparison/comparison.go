// Package comparison compares the figures of two builds, for scripts/bench --against.
package comparison

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// Row is one figure of one run. Less is better, unless More is set.
type Row struct {
	Name, Unit string
	Value      float64
	More       bool
}

// Turn is one measurement of one build.
type Turn func(ctx context.Context) ([]Row, error)

// Take measures two builds alternately (base, new, base, new …), so that a machine that gets slower or busier affects
// both.
func Take(ctx context.Context, times int, base, now Turn) (was, is [][]Row, err error) {
	for i := range times {
		b, err := base(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("the other build, run %d: %w", i+1, err)
		}
		n, err := now(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("this build, run %d: %w", i+1, err)
		}
		was, is = append(was, b), append(is, n)
	}
	return was, is, nil
}

// noise is the fraction of a figure by which two builds may differ and still count as the same.
const noise = 0.03

// Comparison is one figure of two builds, each the median of several runs.
type Comparison struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	More    bool      `json:"moreIsBetter,omitempty"`
	Was     []float64 `json:"against"`
	Is      []float64 `json:"umiak"`
	Verdict string    `json:"verdict"`
}

// The verdicts. A figure that only one of the builds has is new or gone.
const (
	same   = "same"
	better = "better"
	worse  = "worse"
	added  = "new"
	gone   = "gone"
)

// Compare compares the figures of runs of two builds, in the order in which they first appear.
func Compare(was, is [][]Row) []Comparison {
	var out []Comparison
	collect := func(runs [][]Row, to func(*Comparison) *[]float64) {
		for _, rows := range runs {
			for _, r := range rows {
				i := slices.IndexFunc(out, func(c Comparison) bool { return c.Name == r.Name && c.Unit == r.Unit })
				if i < 0 {
					i = len(out)
					out = append(out, Comparison{Name: r.Name, Unit: r.Unit, More: r.More})
				}
				v := to(&out[i])
				*v = append(*v, r.Value)
			}
		}
	}
	collect(is, func(c *Comparison) *[]float64 { return &c.Is })
	collect(was, func(c *Comparison) *[]float64 { return &c.Was })
	for i := range out {
		out[i].Verdict = out[i].verdict()
	}
	return out
}

// verdict compares the medians. They count as the same if they differ by less than the larger spread, or than noise.
func (c Comparison) verdict() string {
	switch {
	case len(c.Was) == 0:
		return added
	case len(c.Is) == 0:
		return gone
	}
	was, is := Median(c.Was), Median(c.Is)
	d := is - was
	if math.Abs(d) <= max(Spread(c.Was), Spread(c.Is), noise*math.Abs(was)) {
		return same
	}
	if (d > 0) == c.More {
		return better
	}
	return worse
}

// Spread returns half the difference between the highest and the lowest value.
func Spread(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return (slices.Max(v) - slices.Min(v)) / 2
}

// change returns the change of the median in percent, empty if it cannot be computed.
func (c Comparison) change() string {
	was, is := Median(c.Was), Median(c.Is)
	if was == 0 || len(c.Was) == 0 || len(c.Is) == 0 {
		return ""
	}
	return fmt.Sprintf("%+.1f%%", (is-was)/was*100)
}

// Median returns the median, for an even number of values the lower one of the two; 0 for none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(v))[(len(v)-1)/2]
}

// Report is the result of a comparison.
type Report struct {
	Benchmark string       `json:"benchmark"`
	About     string       `json:"about"`
	Host      string       `json:"host"`
	Time      string       `json:"time"`
	Against   string       `json:"against"`
	Runs      int          `json:"runs"`
	Rows      []Comparison `json:"rows"`
}

// Show prints the report as a table or as JSON. figure formats a number.
func (r Report) Show(out io.Writer, asJSON bool, figure func(float64) string) error {
	if asJSON {
		r.Host, _ = os.Hostname()
		r.Time = time.Now().UTC().Format(time.RFC3339)
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(out, "%s: %s\nagainst %s: medians of %d runs each, in turn; ± is half the distance from the lowest "+
		"to the highest\n\n", r.Benchmark, r.About, r.Against, r.Runs)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "what\tagainst\t±\tumiak\t±\tunit\tchange\t\t")
	for _, c := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", c.Name, figure(Median(c.Was)), figure(Spread(c.Was)),
			figure(Median(c.Is)), figure(Spread(c.Is)),
			c.Unit, c.change(), c.Verdict)
	}
	return t.Flush()
}
