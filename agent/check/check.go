package check

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/output"
)

// State is how a check came out.
type State string

// Missing keeps a node from working; Warn is worth knowing.
const (
	OK      State = "ok"
	Warn    State = "warn"
	Missing State = "missing"
)

// Result is what one check found.
type Result struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Fix says what to do; empty where nothing is to be done.
	Fix string `json:"fix,omitempty"`
}

// Config is what the checks are about.
type Config struct {
	Dirs       layout.Dirs
	NodeName   string // as it is set, empty for the host name
	CgroupRoot string
	Backend    string // of flannel
	ServerPort int    // 0 on a machine that is only an agent
	NodePort   int    // the kubelet's
	SharePort  int    // where nodes give images to each other
	// BalancerPort is where an agent's components reach the servers; 0 on a server.
	BalancerPort int
	Registries   string // the registries.yaml
	// Exposed are sentences about files with secrets of the settings that others than root can read.
	Exposed []string
	// Remarks are sentences about what looks like a setting and does nothing.
	Remarks []string
}

func ok(name, format string, a ...any) Result {
	return Result{Name: name, State: OK, Detail: fmt.Sprintf(format, a...)}
}

func warn(name, fix, format string, a ...any) Result {
	return Result{Name: name, State: Warn, Detail: fmt.Sprintf(format, a...), Fix: fix}
}

func missing(name, fix, format string, a ...any) Result {
	return Result{Name: name, State: Missing, Detail: fmt.Sprintf(format, a...), Fix: fix}
}

// Run does all checks, in the order in which they are printed. It changes nothing that outlives it.
func Run(ctx context.Context, cfg Config) []Result {
	var out []Result
	for _, check := range []func(context.Context, Config) []Result{
		privileges, userNamespace, nodeName, kernelVersion, namespaces, cgroups, kernelLog, kernelSettings, memory, swap, folders, programs, hostsFile, overlay, diskSpace, kubeletFolders, registrySettings, secretFiles, unusedSettings,
		kernelNetwork, forwarding, foreignDrops, seccomp, inotify, entropy, clock, address, resolvers, ports, dnsPort, others,
	} {
		if ctx.Err() != nil {
			return out
		}
		out = append(out, check(ctx, cfg)...)
	}
	return out
}

// Fit says whether nothing is missing.
func Fit(results []Result) bool {
	for _, r := range results {
		if r.State == Missing {
			return false
		}
	}
	return true
}

// Print writes the results for people, a line each and the remedy below.
func Print(w io.Writer, results []Result) error {
	t := output.NewTable(w)
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%s\n", strings.ToUpper(string(r.State)), r.Name, r.Detail)
		if r.Fix != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", r.Fix)
		}
	}
	return t.Flush()
}

// PrintJSON writes the results for programs.
func PrintJSON(w io.Writer, results []Result) error {
	return output.JSON(w, struct {
		Fit    bool     `json:"fit"`
		Checks []Result `json:"checks"`
	}{Fit(results), results})
}
