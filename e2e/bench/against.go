package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// turn is one measurement of one build.
type turn func(ctx context.Context) ([]row, error)

// take measures two builds in turn, so that a machine that gets slower or busier does it to both: base, new, base, new …
func take(ctx context.Context, times int, base, now turn) (was, is [][]row, err error) {
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

// noise is the part of a figure by which two builds may differ and still be called the same.
const noise = 0.03

// comparison is one figure of two builds, each the median of several runs.
type comparison struct {
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

// compare pairs the figures of runs of two builds, in the order in which they first appear.
func compare(was, is [][]row) []comparison {
	var out []comparison
	collect := func(runs [][]row, to func(*comparison) *[]float64) {
		for _, rows := range runs {
			for _, r := range rows {
				i := slices.IndexFunc(out, func(c comparison) bool { return c.Name == r.Name && c.Unit == r.Unit })
				if i < 0 {
					i = len(out)
					out = append(out, comparison{Name: r.Name, Unit: r.Unit, More: r.More})
				}
				v := to(&out[i])
				*v = append(*v, r.Our)
			}
		}
	}
	collect(is, func(c *comparison) *[]float64 { return &c.Is })
	collect(was, func(c *comparison) *[]float64 { return &c.Was })
	for i := range out {
		out[i].Verdict = out[i].verdict()
	}
	return out
}

// verdict compares the medians. They are the same within the larger of the two spreads, and within noise.
func (c comparison) verdict() string {
	switch {
	case len(c.Was) == 0:
		return added
	case len(c.Is) == 0:
		return gone
	}
	was, is := median(c.Was), median(c.Is)
	d := is - was
	if math.Abs(d) <= max(spread(c.Was), spread(c.Is), noise*math.Abs(was)) {
		return same
	}
	if (d > 0) == c.More {
		return better
	}
	return worse
}

// spread is half the distance between the lowest and the highest of several runs.
func spread(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return (slices.Max(v) - slices.Min(v)) / 2
}

// change is by how much the median has changed, in per cent.
func (c comparison) change() string {
	was, is := median(c.Was), median(c.Is)
	if was == 0 || len(c.Was) == 0 || len(c.Is) == 0 {
		return ""
	}
	return fmt.Sprintf("%+.1f%%", (is-was)/was*100)
}

// against runs a benchmark on another build and on this one.
func against(ctx context.Context, name string, b benchmark, o options, out io.Writer) error {
	if o.peer != "" {
		return errors.New("--against and --peer do not go together: measure one after the other")
	}
	if name == "hollow" {
		return errors.New("hollow does not take --against: one run takes 20 minutes; run it with UMIAK_DIST=DIR instead")
	}
	dir, err := filepath.Abs(o.against)
	if err != nil {
		return err
	}
	for _, p := range []string{"umiak", "umiak-agent"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return fmt.Errorf("--against wants a folder with the programs of another build: %w", err)
		}
	}
	times := o.runs
	o.runs = 1
	of := func(dist string) turn {
		return func(ctx context.Context) ([]row, error) {
			s := &umiakStack{dist: dist}
			var r report
			err := b.run(ctx, o, s, &r)
			return r.rows, errors.Join(err, s.stop())
		}
	}
	was, is, err := take(ctx, times, of(dir), of(""))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return showComparison(out, name, b.about, o, times, compare(was, is))
}

func showComparison(out io.Writer, name, about string, o options, times int, all []comparison) error {
	if o.output == "json" {
		host, _ := os.Hostname()
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"benchmark": name, "about": about, "host": host, "time": time.Now().UTC().Format(time.RFC3339),
			"against": o.against, "runs": times, "rows": all})
	}
	fmt.Fprintf(out, "%s: %s\nagainst %s: medians of %d runs each, in turn; ± is half the distance from the lowest to the highest\n\n", name, about, o.against, times)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "what\tagainst\t±\tumiak\t±\tunit\tchange\t\t")
	for _, c := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", c.Name, figure(median(c.Was)), figure(spread(c.Was)), figure(median(c.Is)), figure(spread(c.Is)),
			c.Unit, c.change(), c.Verdict)
	}
	return t.Flush()
}
