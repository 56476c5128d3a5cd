package podsource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/listing"
)

// Results is the folder in which the CNI library keeps what each pod was given.
const Results = "/var/lib/cni/results"

// ErrKept means that of some pod it cannot be read what the CNI library keeps; all others are looked after.
var ErrKept = errors.New("what the CNI library keeps of a pod cannot be read")

// Restore writes the chains that are missing, or have other rules than this release writes, of all pods that the CNI
// library knows of in the folder results and whose address is kept in the folder state. It reports whether there were
// any. A kernel that cannot have such chains is an error, also where there are no pods.
func Restore(ctx context.Context, conn *netfilter.Conn, results, state string) (bool, error) {
	here, err := interfaces()
	if err != nil {
		return false, err
	}
	pods, bad := running(results, state, here)
	want := checked{pods: map[string]Pod{}, here: here}
	for _, p := range pods {
		want.pods[p.Interface] = p
	}
	done, err := table(conn).Reconcile(ctx, want)
	return err == nil && len(pods) > 0 && done != netfilter.Result{}, errors.Join(err, bad)
}

// running returns the pods whose interface exists, and the results that cannot be read.
func running(results, state string, here map[string]bool) (out []Pod, bad error) {
	files, err := listing.Match(results, "umiak-*")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the pod has gone meanwhile
		}
		var p *Pod
		if err == nil {
			p, err = parse(raw, state)
		}
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("%w: %s: %w", ErrKept, f, err))
		} else if p != nil && here[p.Interface] {
			out = append(out, *p)
		}
	}
	return out, bad
}

// parse reads one result; nil if it is another node's.
func parse(raw []byte, state string) (*Pod, error) {
	var kept struct {
		IfName string          `json:"ifName"`
		Config []byte          `json:"config"`
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(raw, &kept); err != nil {
		return nil, err
	}
	if !bytes.Contains(kept.Config, fmt.Appendf(nil, "%q", state)) {
		return nil, nil
	}
	r, err := current.NewResult(kept.Result)
	if err != nil {
		return nil, err
	}
	return OfResult(r, kept.IfName)
}

// OfResult is the pod that a CNI plugin's result tells of; nil if that has no address.
func OfResult(result types.Result, ifName string) (*Pod, error) {
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	p := &Pod{}
	inside := -1
	for i, ifc := range r.Interfaces {
		if ifc.Sandbox != "" && ifc.Name == ifName {
			inside = i
			p.MAC, _ = net.ParseMAC(ifc.Mac) // not every plugin says it
		}
	}
	for _, ip := range r.IPs {
		if ip.Interface != nil && *ip.Interface != inside {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			p.Addrs = append(p.Addrs, a.Unmap())
		}
	}
	// The bridge plugin names the bridge first, then the pod's interface on the host.
	for i, ifc := range r.Interfaces {
		if ifc.Sandbox == "" && i > 0 {
			p.Interface = ifc.Name
		}
	}
	if p.Interface == "" || len(p.Addrs) == 0 {
		return nil, nil
	}
	return p, nil
}
