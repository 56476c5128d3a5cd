// Command slowest reads what `go test -json` prints, prints it as `go test` without -json does, and then the ten top-level
// tests that took longest: the time is the one that go test counts, without waiting
// for a turn in parallel.
//
// scripts/test calls it at the end of e2e.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Time                 time.Time
	Action, Test, Output string
	Elapsed              float64
}

// test is a top-level test that has ended.
type test struct {
	name   string
	result string
	took   time.Duration
}

func main() {
	verbose := len(os.Args) > 1 && os.Args[1] == "-v"
	if err := run(os.Stdin, os.Stdout, verbose); err != nil {
		fmt.Fprintln(os.Stderr, "slowest:", err)
		os.Exit(1)
	}
}

// run copies the output of tests that fail, or of all with verbose, and ends with the table.
func run(in io.Reader, out io.Writer, verbose bool) error {
	r := bufio.NewReader(in)
	kept := map[string][]string{} // output of tests that may still fail, by top-level test
	var all []test
	for {
		line, err := r.ReadString('\n')
		if line == "" && err == io.EOF {
			break
		}
		if err != nil && err != io.EOF {
			return err
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // of the build, or of the go command
			continue
		}
		top, _, sub := strings.Cut(e.Test, "/")
		switch e.Action {
		case "output":
			if verbose || top == "" {
				fmt.Fprint(out, e.Output)
			} else {
				kept[top] = append(kept[top], e.Output)
			}
		case "pass", "fail", "skip":
			if top == "" || sub {
				continue
			}
			if e.Action == "fail" {
				fmt.Fprint(out, strings.Join(kept[top], ""))
			}
			delete(kept, top)
			all = append(all, test{top, e.Action, time.Duration(e.Elapsed * float64(time.Second))})
		}
	}
	for _, lines := range kept { // a test that never ended
		fmt.Fprint(out, strings.Join(lines, ""))
	}
	slices.SortStableFunc(all, func(a, b test) int { return cmp.Compare(b.took, a.took) })
	var sum time.Duration
	for _, t := range all {
		sum += t.took
	}
	fmt.Fprintf(out, "\n%d tests, %s together; the slowest:\n", len(all), sum.Round(time.Second))
	for _, t := range all[:min(10, len(all))] {
		fmt.Fprintf(out, "%8s  %-4s  %s\n", t.took.Round(100*time.Millisecond), t.result, t.name)
	}
	return nil
}
