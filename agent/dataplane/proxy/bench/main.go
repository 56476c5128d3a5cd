// Command bench measures the service proxy beside upstream's kube-proxy in nftables mode: one API
// server, one set of Services, each proxy in a network namespace of its own, one after the other in one
// run. scripts/bench proxy calls it.
//
// kube-proxy, kube-apiserver and etcd are upstream's programs, from the folder that the peers were built
// into (PEERS). What is measured of umiak is agent/dataplane/proxy alone, in a process of its own with its informers.
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
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/umiak-io/umiak/internal/testing/comparison"
)

// row is one figure. Less is better unless More says so.
type row struct {
	Services int     `json:"services"`
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Our      float64 `json:"umiak"`
	Peer     float64 `json:"kubeProxy"`
	More     bool    `json:"moreIsBetter,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if kubeconfig := os.Getenv(ownKubeconfig); kubeconfig != "" {
		err = serveOurs(ctx, kubeconfig, os.Getenv(ownNode))
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "proxybench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("proxybench", flag.ContinueOnError)
	sizes := f.String("services", "10,100,1000,10000", "numbers of Services, rising")
	output := f.String("o", "", "json, or empty for a table")
	changes := f.Int("changes", 20, "one-endpoint changes of which the median counts")
	load := f.Duration("load", 10*time.Second, "how long there are 100 changes a second")
	against := f.String("against", "", "this program of another commit; measures its proxy and this one's in turn, without kube-proxy")
	runs := f.Int("runs", 5, "against: how often; the median counts")
	if err := f.Parse(args); err != nil {
		return err
	}
	peers := os.Getenv("PEERS")
	if peers == "" {
		peers = "/var/tmp/umiak-peers"
	}
	if _, err := os.Stat(filepath.Join(peers, "bin", "kube-proxy")); err != nil {
		return fmt.Errorf("the peers are not built (PEERS says where): %w", err)
	}
	c, err := newBed(ctx, filepath.Join(peers, "bin"))
	if c != nil {
		defer func() { err = errors.Join(err, c.close()) }()
	}
	if err != nil {
		return err
	}
	var rows []row
	rep := comparison.Report{Benchmark: "proxy", About: "the service proxy alone", Against: *against, Runs: *runs}
	for _, s := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("-services: %w", err)
		}
		if err := c.fill(ctx, n); err != nil {
			return err
		}
		if *against != "" {
			was, is, err := comparison.Take(ctx, *runs, c.turn(c.otherBuild(*against), n, *changes, *load),
				c.turn(c.ours, n, *changes, *load))
			if err != nil {
				return fmt.Errorf("with %d Services: %w", n, err)
			}
			rep.Rows = append(rep.Rows, comparison.Compare(was, is)...)
			continue
		}
		var both [2][]row
		for i, p := range []*proxy{c.ours, c.peer} {
			if both[i], err = c.measure(ctx, p, n, *changes, *load); err != nil {
				return fmt.Errorf("%s with %d Services: %w", p.name, n, err)
			}
			for _, r := range both[i] { // a long run that is cut short has said something
				fmt.Fprintf(os.Stderr, "%s, %d Services: %s: %s %s\n", p.name, n, r.Name, figure(r.Our), r.Unit)
			}
		}
		for i, r := range both[0] {
			r.Peer = both[1][i].Our
			rows = append(rows, r)
		}
	}
	if *against != "" {
		return rep.Show(out, *output == "json", figure)
	}
	if *output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"benchmark": "proxy", "time": time.Now().UTC().Format(time.RFC3339),
			"rows": rows})
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "Services\twhat\tumiak\tkube-proxy\tratio\tunit\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t\n", r.Services, r.Name, figure(r.Our), figure(r.Peer),
			figure(r.Peer/max(r.Our, 1e-9)), r.Unit)
	}
	return t.Flush()
}

// turn is one measurement of a proxy.
func (b *bed) turn(p *proxy, n, changes int, load time.Duration) comparison.Turn {
	return func(ctx context.Context) (out []comparison.Row, err error) {
		rows, err := b.measure(ctx, p, n, changes, load)
		for _, r := range rows {
			out = append(out, comparison.Row{Name: fmt.Sprintf("%d Services: %s", n, r.Name), Unit: r.Unit,
				Value: r.Our, More: r.More})
		}
		return out, err
	}
}

func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 1:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
