// Command testreport reads what `go test -json` prints and prints it as `go test` without -json does, then the ten
// top-level tests that took longest: the time is the one that go test counts, without waiting for a turn in parallel.
// It appends the tests that were skipped, each with its reason, to the file of -skipped.
//
// scripts/test runs the unit and e2e tests through it, and ends with that file.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// test is a top-level test that has ended.
type test struct {
	name   string
	result string
	took   time.Duration
}

// report collects what the end of the output shows.
type report struct {
	out     io.Writer
	verbose bool
	output  map[string][]string // of tests that may still fail, by package and top-level test
	last    map[string]string   // the last message of a test or subtest, by package and name
	ended   []test
	skipped []string
}

func main() {
	verbose := flag.Bool("v", false, "print the output of tests that pass, too")
	slowest := flag.Bool("slowest", true, "end with the tests that took longest")
	file := flag.String("skipped", "", "file to which skipped tests are appended")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *verbose, *slowest, *file); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, verbose, slowest bool, file string) error {
	r := report{out: out, verbose: verbose, output: map[string][]string{}, last: map[string]string{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line == "" && err == io.EOF {
			break
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("read the output of go test: %w", err)
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // of the build, or of the go command
			continue
		}
		r.take(e)
	}
	for _, lines := range r.output { // a test that never ended
		fmt.Fprint(out, strings.Join(lines, ""))
	}
	if slowest {
		r.printSlowest()
	}
	return r.appendSkipped(file)
}

// take prints or remembers an event.
func (r *report) take(e event) {
	top, _, sub := strings.Cut(e.Test, "/")
	key, full := e.Package+" "+top, e.Package+" "+e.Test
	switch e.Action {
	case "output":
		if text := strings.TrimSpace(e.Output); text != "" && !strings.HasPrefix(text, "===") &&
			!strings.HasPrefix(text, "---") {
			r.last[full] = text
		}
		if e.Output == "PASS\n" && top == "" {
			return // go test prints it for one package alone, before that package's "ok"
		}
		if r.verbose || top == "" {
			fmt.Fprint(r.out, e.Output)
		} else {
			r.output[key] = append(r.output[key], e.Output)
		}
	case "pass", "fail", "skip":
		if e.Action == "skip" && e.Test != "" {
			r.skipped = append(r.skipped, fmt.Sprintf("%s %s: %s", path.Base(e.Package), e.Test, r.last[full]))
		}
		delete(r.last, full)
		if top == "" || sub {
			return
		}
		if e.Action == "fail" && !r.verbose {
			fmt.Fprint(r.out, strings.Join(r.output[key], ""))
		}
		delete(r.output, key)
		r.ended = append(r.ended, test{top, e.Action, time.Duration(e.Elapsed * float64(time.Second))})
	}
}

func (r *report) printSlowest() {
	slices.SortStableFunc(r.ended, func(a, b test) int { return cmp.Compare(b.took, a.took) })
	var sum time.Duration
	for _, t := range r.ended {
		sum += t.took
	}
	fmt.Fprintf(r.out, "\n%d tests, %s together; the slowest:\n", len(r.ended), sum.Round(time.Second))
	for _, t := range r.ended[:min(10, len(r.ended))] {
		fmt.Fprintf(r.out, "%8s  %-4s  %s\n", t.took.Round(100*time.Millisecond), t.result, t.name)
	}
}

func (r *report) appendSkipped(file string) error {
	if file == "" || len(r.skipped) == 0 {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write the skipped tests: %w", err)
	}
	_, err = f.WriteString(strings.Join(r.skipped, "\n") + "\n")
	return errors.Join(err, f.Close())
}
