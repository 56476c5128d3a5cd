package check

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/output"
)

// State is the outcome of a check.
type State string

// Outcomes: Missing prevents a node from working, Warn does not.
const (
	OK      State = "ok"
	Warn    State = "warn"
	Missing State = "missing"
)

// Result is the result of one check.
type Result struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Fix is the remedy; "" if there is none.
	Fix string `json:"fix,omitempty"`
}

// Config describes what to check.
type Config struct {
	Dirs       layout.Dirs
	NodeName   string // the setting; "" means the host name
	WithNodeID bool   // a machine that has not joined gets a name with a suffix
	CgroupRoot string // "" means /
	Backend    string // flannel's; "" means vxlan
	ServerPort int    // the API server's; 0 on an agent
	NodePort   int    // the kubelet's; 0 skips the check
	SharePort  int    // of image sharing; 0 if it is off
	// BalancerPort is the port of an agent's API server balancer; 0 on a server.
	BalancerPort int
	Registries   string // path of registries.yaml; "" skips the check
	// ProtectKernel means that the kubelet must not change kernel settings.
	ProtectKernel bool
	Runtime       string // the default OCI runtime; "" means runc
	SELinux       bool   // containers get SELinux labels
	// RuntimeSocket is the socket of a container runtime that is not Umiak's; "" for Umiak's.
	RuntimeSocket string
	// Exposed are messages about settings files with secrets that users other than root can read.
	Exposed []string
	// Remarks are messages about what looks like a setting and has no effect.
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

// Run runs all checks in the order in which they are printed. It leaves no changes behind.
func Run(ctx context.Context, cfg Config) []Result {
	var out []Result
	for _, check := range []func(context.Context, Config) []Result{
		privileges, userNamespace, nodeName, kernelVersion, namespaces, cgroups, kernelLog, kernelSettings, memory,
		swap, folders, programs, containerRuntime, selinux, hostsFile, overlay, diskSpace, kubeletFolders,
		registrySettings, secretFiles, unusedSettings,
		kernelNetwork, forwarding, foreignDrops, seccomp, inotify, entropy, clock, address, resolvers, ports, dnsPort,
		others,
	} {
		if ctx.Err() != nil {
			return out
		}
		out = append(out, check(ctx, cfg)...)
	}
	return out
}

// Fit reports whether no result is Missing.
func Fit(results []Result) bool {
	for _, r := range results {
		if r.State == Missing {
			return false
		}
	}
	return true
}

// Print writes the results as a table, with remedies below.
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

// PrintJSON writes the results as JSON.
func PrintJSON(w io.Writer, results []Result) error {
	return output.JSON(w, struct {
		Fit    bool     `json:"fit"`
		Checks []Result `json:"checks"`
	}{Fit(results), results})
}
