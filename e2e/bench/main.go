// Command bench measures what a cluster costs and how fast it is: umiak on an isolated machine and, by the same code in
// the same run, the stack that kubeadm installs (-peer) or another build of umiak (-against). scripts/bench calls it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/umiak-io/umiak/e2e/machine"
)

// options are the flags; their defaults are what the published figures were taken with.
type options struct {
	peer    string
	against string
	output  string
	runs    int
	settle  time.Duration
	over    time.Duration
	n       int
	burst   int
	count   int
	nodes   int

	podsPerNode int
	pods        int
}

// row is one figure of one or two stacks. Less is better unless More says so.
type row struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"`
	Our  float64 `json:"umiak"`
	Peer float64 `json:"vanilla,omitempty"`
	More bool    `json:"moreIsBetter,omitempty"`
}

// report is what a benchmark yields: figures of one stack by name, in order.
type report struct{ rows []row }

func (r *report) add(name, unit string, v float64) {
	r.rows = append(r.rows, row{Name: name, Unit: unit, Our: v})
}

func (r *report) more(name, unit string, v float64) {
	r.rows = append(r.rows, row{Name: name, Unit: unit, Our: v, More: true})
}

// benchmark measures one stack, which it starts and stops itself.
type benchmark struct {
	about string
	run   func(ctx context.Context, o options, s stack, r *report) error
}

func benchmarks() map[string]benchmark {
	return map[string]benchmark{
		"startup": {"exec to API ready, node Ready, first pod Running; empty state; median", startup},
		"footprint": {"memory, CPU and bytes written of each process while idle, with one pod or as many as -pods says",
			footprint},
		"pods":   {"pod start one by one and many at once, image present", pods},
		"api":    {"creates, lists and gets of 1 KiB ConfigMaps, 32 clients", api},
		"writes": {"durable creates, and what they cost the disk", writes},
		"hollow": {"one server with many nodes that run nothing, on SQLite and on etcd", hollow},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.peer, "peer", "", "folder of the peers; measures them as well")
	f.StringVar(&o.against, "against", "",
		"folder with umiak and umiak-agent of another build; measures both in turn and compares them")
	f.StringVar(&o.output, "o", "", "json, or empty for a table")
	f.IntVar(&o.runs, "runs", 0, "how often; the median counts: startup (default 3), any with -against (default 5)")
	f.DurationVar(&o.settle, "settle", time.Minute, "footprint, hollow: pause before measuring")
	f.DurationVar(&o.over, "over", 5*time.Minute, "footprint, hollow: how long")
	f.IntVar(&o.n, "n", 30, "pods: how many one by one")
	f.IntVar(&o.burst, "burst", 50, "pods: how many at once")
	f.IntVar(&o.count, "count", 5000, "api, writes: how many ConfigMaps")
	f.IntVar(&o.nodes, "nodes", 500, "hollow: how many nodes")
	f.IntVar(&o.pods, "pods", 1, "footprint: how many idle pods")
	f.IntVar(&o.podsPerNode, "pods-per-node", 10, "hollow: how many pods a node")
	all := benchmarks()
	if len(args) == 0 {
		return errors.New("which one: startup, footprint, pods, api, writes or hollow?")
	}
	b, ok := all[args[0]]
	if !ok {
		return fmt.Errorf("no benchmark %q; there are startup, footprint, pods, api, writes, hollow", args[0])
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if err := machine.Sweep(); err != nil {
		return err
	}
	if o.runs == 0 {
		if o.runs = 3; o.against != "" {
			o.runs = 5
		}
	}
	if o.runs < 1 || o.pods < 1 || o.pods > mostPods {
		return fmt.Errorf("-runs must be 1 or more, -pods 1 to %d", mostPods)
	}
	if o.against != "" {
		return against(ctx, args[0], b, o, out)
	}
	stacks := []stack{&umiakStack{}}
	if o.peer != "" {
		stacks = append(stacks, newVanilla(o.peer))
	}
	var reports []report
	for _, s := range stacks {
		var r report
		err := b.run(ctx, o, s, &r)
		if err = errors.Join(err, s.stop()); err != nil {
			return fmt.Errorf("%s of %s: %w", args[0], s.name(), err)
		}
		reports = append(reports, r)
	}
	return show(out, args[0], b.about, o, merge(reports))
}

// merge puts the peer's figures beside ours; processes that only one of them has stay alone in their row.
func merge(reports []report) []row {
	rows := reports[0].rows
	if len(reports) == 1 {
		return rows
	}
	for _, p := range reports[1].rows {
		found := false
		for i := range rows {
			if rows[i].Name == p.Name && rows[i].Unit == p.Unit {
				rows[i].Peer, found = p.Our, true
			}
		}
		if !found {
			rows = append(rows, row{Name: p.Name, Unit: p.Unit, Peer: p.Our, More: p.More})
		}
	}
	return rows
}

func show(out io.Writer, name, about string, o options, rows []row) error {
	host, _ := os.Hostname()
	if o.output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"benchmark": name, "about": about, "host": host,
			"time": time.Now().UTC().Format(time.RFC3339), "rows": rows})
	}
	fmt.Fprintf(out, "%s: %s\n\n", name, about)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	head := "what\tumiak\tunit\t"
	if o.peer != "" {
		head = "what\tumiak\tvanilla\tratio\tunit\t"
	}
	fmt.Fprintln(t, head)
	for _, r := range rows {
		if o.peer == "" {
			fmt.Fprintf(t, "%s\t%s\t%s\t\n", r.Name, figure(r.Our), r.Unit)
			continue
		}
		ratio := ""
		if r.Our > 0 && r.Peer > 0 {
			ratio = fmt.Sprintf("%.2f", r.Our/r.Peer)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", r.Name, figure(r.Our), figure(r.Peer), ratio, r.Unit)
	}
	return t.Flush()
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
}

// peersBuilt is the folder into which the peers' own script builds them.
func peersBuilt() string {
	if d := os.Getenv("PEERS"); d != "" {
		return d
	}
	return filepath.Join("/var/tmp", "umiak-peers")
}
