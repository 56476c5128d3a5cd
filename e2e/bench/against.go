package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/internal/testing/comparison"
)

// against runs a benchmark on another build and on this one.
func against(ctx context.Context, name string, b benchmark, o options, out io.Writer) error {
	if o.peer != "" {
		return errors.New("--against and --peer do not go together: measure one after the other")
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
	of := func(dist string) comparison.Turn {
		return func(ctx context.Context) ([]comparison.Row, error) {
			s := &umiakStack{dist: dist}
			var r report
			err := b.run(ctx, o, s, &r)
			var rows []comparison.Row
			for _, r := range r.rows {
				rows = append(rows, comparison.Row{Name: r.Name, Unit: r.Unit, Value: r.Our, More: r.More})
			}
			return rows, errors.Join(err, s.stop())
		}
	}
	was, is, err := comparison.Take(ctx, times, of(dir), of(""))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	rep := comparison.Report{Benchmark: name, About: b.about, Against: o.against, Runs: times,
		Rows: comparison.Compare(was, is)}
	return rep.Show(out, o.output == "json", figure)
}
