package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/gctuning"
)

const (
	portA, portB, portStream = 18001, 18002, 18003
)

// listen answers on the node: two ports with their letter, the third reads a stream.
func (p *proxy) listen() (err error) {
	for port, answer := range map[int]string{portA: "A", portB: "B", portStream: ""} {
		var l net.Listener
		p.do(func() { l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", p.addr, port)) })
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if answer == "" {
					go func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() }()
					continue
				}
				_, _ = io.WriteString(c, answer)
				_ = c.Close()
			}
		}()
	}
	return nil
}

func (p *proxy) dial() (c net.Conn, err error) {
	p.do(func() { c, err = net.DialTimeout("tcp", p.vip+":80", 300*time.Millisecond) })
	return c, err
}

// ask returns who answers at the probe.
func (p *proxy) ask() string {
	c, err := p.dial()
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	b, _ := io.ReadAll(c)
	return string(b)
}

// metric sums a metric of the proxy's over its label sets.
func (p *proxy) metric(names ...string) map[string]float64 {
	out := map[string]float64{}
	tr := &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			p.do(func() { c, err = net.DialTimeout("tcp", metricsAddr, time.Second) })
			return c, err
		}}
	r, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("http://" + metricsAddr + "/metrics")
	if err != nil {
		return out
	}
	defer r.Body.Close()
	for sc := bufio.NewScanner(r.Body); sc.Scan(); {
		i := strings.LastIndexByte(sc.Text(), ' ')
		if i < 0 || strings.Contains(sc.Text(), "IPv6") {
			continue
		}
		name, _, _ := strings.Cut(sc.Text()[:i], "{")
		if slices.Contains(names, name) {
			v, _ := strconv.ParseFloat(sc.Text()[i+1:], 64)
			out[name] += v
		}
	}
	return out
}

const (
	syncs       = "kubeproxy_sync_proxy_rules_duration_seconds"
	fullSyncs   = "kubeproxy_sync_full_proxy_rules_duration_seconds"
	changesLeft = "kubeproxy_sync_proxy_rules_endpoint_changes_pending"
)

// point makes a listener the probe's endpoint.
func (b *bed) point(ctx context.Context, p *proxy, port int32) error {
	_, err := b.kube.DiscoveryV1().EndpointSlices(namespace).Update(ctx, newSlice("probe-"+p.node, port, p.addr),
		metav1.UpdateOptions{})
	return err
}

// measurement is one run: a proxy that runs on the bed's Services, and its rows.
type measurement struct {
	*bed
	proxy    *proxy
	cmd      *exec.Cmd
	services int
	rows     []row
}

func (r *measurement) add(name, unit string, v float64) {
	r.rows = append(r.rows, row{Services: r.services, Name: name, Unit: unit, Our: v})
}

// measure runs a proxy on n Services, with a number of changes of one endpoint and a time under a load of changes.
func (b *bed) measure(ctx context.Context, p *proxy, n, changes int, load time.Duration) (rows []row, err error) {
	p.do(func() { err = exec.Command("nft", "flush", "ruleset").Run() })
	if err != nil {
		return nil, fmt.Errorf("empty the tables: %w", err)
	}
	if err := b.point(ctx, p, portA); err != nil {
		return nil, err
	}
	r := &measurement{bed: b, proxy: p, cmd: p.command(), services: n}
	begun := time.Now()
	if err := b.start(p.space, r.cmd, p.name); err != nil {
		return nil, err
	}
	defer func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		_ = r.cmd.Wait()
	}()
	for _, step := range []func() error{
		func() error { return r.firstSync(ctx, begun) },
		func() error { return r.singleChanges(ctx, changes) },
		func() error { return r.underLoad(ctx, load) },
		r.connections,
		func() error { return r.throughput(ctx) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return r.rows, b.point(ctx, p, portA)
}

// firstSync measures the start, and the memory once it is over.
func (r *measurement) firstSync(ctx context.Context, begun time.Time) error {
	if err := until(ctx, 3*time.Minute, "the first sync", 2*time.Millisecond,
		func() bool { return r.proxy.ask() == "A" }); err != nil {
		log, _ := os.ReadFile(r.dir + "/" + r.proxy.name + ".log")
		return fmt.Errorf("%w\n%s", err, log[max(0, len(log)-2000):])
	}
	r.add("exec until Services answer", "s", time.Since(begun).Seconds())
	// What a start needs for a while is not what an idle node has.
	if err := pause(ctx, gctuning.StartOver+5*time.Second); err != nil {
		return err
	}
	// Read only now: the metric is counted a little after the rules are in force. Of kube-proxy's first full
	// syncs, the one that wrote everything is by far the longest.
	m := r.proxy.metric(fullSyncs+"_sum", fullSyncs+"_count")
	r.add("full sync", "s", m[fullSyncs+"_sum"])
	rss, anon := memory(r.cmd.Process.Pid)
	r.add("memory, RSS", "MiB", rss)
	r.add("memory, anonymous", "MiB", anon)
	return nil
}

// singleChanges measures changes of one endpoint on an otherwise idle node.
func (r *measurement) singleChanges(ctx context.Context, changes int) error {
	before := r.proxy.metric(syncs+"_sum", syncs+"_count")
	var took, each []float64
	ports := []int32{portB, portA}
	for i := range changes {
		begun := time.Now()
		if err := r.point(ctx, r.proxy, ports[i%2]); err != nil {
			return err
		}
		want := []string{"B", "A"}[i%2]
		if err := until(ctx, time.Minute, "the new endpoint", 500*time.Microsecond,
			func() bool { return r.proxy.ask() == want }); err != nil {
			return err
		}
		took = append(took, time.Since(begun).Seconds()*1000)
		if err := pause(ctx, 1200*time.Millisecond); err != nil { // longer than kube-proxy's minSyncPeriod
			return err
		}
		after := r.proxy.metric(syncs+"_sum", syncs+"_count")
		if counted := after[syncs+"_count"] - before[syncs+"_count"]; counted > 0 {
			each = append(each, 1000*(after[syncs+"_sum"]-before[syncs+"_sum"])/counted)
		}
		before = after
	}
	if len(each) == 0 {
		return fmt.Errorf("%s counted no sync in %d changes", r.proxy.name, changes)
	}
	r.add("one-endpoint change, sync, p50", "ms", quantile(each, .5))
	r.add("one-endpoint change, sync, longest", "ms", slices.Max(each))
	r.add("one-endpoint change, until it answers, p50", "ms", quantile(took, .5))
	return nil
}

// underLoad measures the processor time of the proxy while endpoints change all the time. The API server works as
// well then, so latencies say nothing.
func (r *measurement) underLoad(ctx context.Context, load time.Duration) error {
	cpu := processor(r.cmd.Process.Pid)
	begun, made := time.Now(), 0
	for tick := time.NewTicker(10 * time.Millisecond); time.Since(begun) < load; made++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		i := made % r.services
		if _, err := r.kube.DiscoveryV1().EndpointSlices(namespace).Update(ctx,
			newSlice(fillerName(i), 8080, endpoint(i, 0, 0), endpoint(i, 1, 1+made%2)),
			metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	seconds := time.Since(begun).Seconds()
	r.add(fmt.Sprintf("CPU at 100 changes/s (%s)", load), "%", 100*(processor(r.cmd.Process.Pid)-cpu)/seconds)
	if err := until(ctx, time.Minute, "all changes to be in", 50*time.Millisecond,
		func() bool { return r.proxy.metric(changesLeft)[changesLeft] == 0 }); err != nil {
		return err
	}
	return pause(ctx, time.Second)
}

// connections measures how long connections through a Service take.
func (r *measurement) connections() error {
	var connects []float64
	failed := 0
	for range 3000 {
		begun := time.Now()
		c, err := r.proxy.dial()
		if err != nil {
			failed++
			continue
		}
		connects = append(connects, float64(time.Since(begun).Microseconds()))
		_ = c.Close()
	}
	if len(connects) == 0 {
		return errors.New("no connection through the Service succeeded")
	}
	r.add("connections of 3000 that failed", "", float64(failed))
	r.add("connect through a Service, p50", "µs", quantile(connects, .5))
	r.add("connect through a Service, p99", "µs", quantile(connects, .99))
	return nil
}

// throughput measures one stream through a Service.
func (r *measurement) throughput(ctx context.Context) error {
	if err := r.point(ctx, r.proxy, portStream); err != nil {
		return err
	}
	if err := until(ctx, time.Minute, "the stream's endpoint", 10*time.Millisecond, func() bool {
		c, err := r.proxy.dial()
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		ne, late := err.(net.Error)
		return late && ne.Timeout() // the other two answer at once
	}); err != nil {
		return err
	}
	speed, err := r.proxy.stream(3 * time.Second)
	if err != nil {
		return err
	}
	r.rows = append(r.rows, row{Services: r.services, Name: "throughput through a Service", Unit: "Gbit/s", Our: speed,
		More: true})
	return nil
}

// stream sends for a while and returns Gbit/s.
func (p *proxy) stream(d time.Duration) (float64, error) {
	c, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	begun, sent := time.Now(), 0
	for time.Since(begun) < d {
		n, err := c.Write(buf)
		sent += n
		if err != nil {
			return 0, err
		}
	}
	return float64(sent) * 8 / 1e9 / time.Since(begun).Seconds(), nil
}

// memory returns RSS and anonymous memory in MiB.
func memory(pid int) (rss, anon float64) {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		v, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			rss = v / 1024
		case "RssAnon:":
			anon = v / 1024
		}
	}
	return rss, anon
}

// processor returns the seconds that a process and the programs it has called took.
func processor(pid int) float64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(raw), ") ")
	var ticks float64
	for i, f := range strings.Fields(rest) {
		if i >= 11 && i <= 14 { // utime, stime, cutime, cstime
			v, _ := strconv.ParseFloat(f, 64)
			ticks += v
		}
	}
	return ticks / 100
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}
