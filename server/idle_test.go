package server_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestIdle measures the control plane alone; it is for people: UMIAK_TEST_IDLE=1m go test -run Idle -v.
func TestIdle(t *testing.T) {
	span, err := time.ParseDuration(os.Getenv("UMIAK_TEST_IDLE"))
	if err != nil {
		t.Skip("UMIAK_TEST_IDLE is not set to a duration")
	}
	dir := t.TempDir()
	p := start(t, dir)
	proc := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	time.Sleep(20 * time.Second) // what is measured is rest, so there is nothing to wait for
	cpu, written := usage(t, proc)
	time.Sleep(span)
	cpu2, written2 := usage(t, proc)
	t.Logf("CPU %.2f s/min, written %.2f MB/h", (cpu2-cpu)/span.Minutes(), float64(written2-written)/1e6/span.Hours())
	raw, err := os.ReadFile(filepath.Join(proc, "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(raw), "\n") {
		for _, want := range []string{"Rss:", "Pss:", "Anonymous:"} {
			if strings.HasPrefix(l, want) {
				t.Log(l)
			}
		}
	}
	if out := os.Getenv("UMIAK_TEST_PROFILES"); out != "" {
		_ = p.cmd.Process.Signal(syscall.SIGUSR1)
		time.Sleep(35 * time.Second)
		for _, f := range []string{"cpu.prof", "heap.prof", "goroutines.txt", "mem.txt"} {
			raw, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				t.Error(err)
			}
			if f == "mem.txt" {
				t.Logf("%s", raw)
			}
			if err := os.WriteFile(filepath.Join(out, f), raw, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("stop: %v", p.stop(t))
}

// usage is CPU seconds and bytes written by a process so far.
func usage(t *testing.T, proc string) (cpu float64, written int64) {
	raw, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	w := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+2:]))
	for _, s := range w[11:13] {
		n, _ := strconv.ParseFloat(s, 64)
		cpu += n / 100
	}
	raw, err = os.ReadFile(filepath.Join(proc, "io"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(raw), "\n") {
		if v, ok := strings.CutPrefix(l, "write_bytes: "); ok {
			written, _ = strconv.ParseInt(v, 10, 64)
		}
	}
	return cpu, written
}

// profileOnSignal writes profiles of the next 30 s into dir when SIGUSR1 comes.
func profileOnSignal(dir string) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() {
		for range c {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			f, _ := os.Create(filepath.Join(dir, "cpu.prof"))
			_ = pprof.StartCPUProfile(f)
			time.Sleep(30 * time.Second)
			pprof.StopCPUProfile()
			_ = f.Close()
			runtime.GC()
			f, _ = os.Create(filepath.Join(dir, "heap.prof"))
			_ = pprof.WriteHeapProfile(f)
			_ = f.Close()
			f, _ = os.Create(filepath.Join(dir, "goroutines.txt"))
			_ = pprof.Lookup("goroutine").WriteTo(f, 1)
			_ = f.Close()
			text := ""
			for _, v := range []struct {
				n string
				b uint64
			}{{"heap in use", m.HeapInuse}, {"heap idle", m.HeapIdle}, {"released", m.HeapReleased},
				{"next GC", m.NextGC}, {"stacks", m.StackInuse}, {"GC metadata", m.GCSys}} {
				text += v.n + " " + strconv.FormatUint(v.b>>20, 10) + " MiB, "
			}
			_ = os.WriteFile(filepath.Join(dir, "mem.txt"),
				[]byte(text+strconv.Itoa(runtime.NumGoroutine())+" goroutines"), 0o600)
		}
	}()
}
