package podsource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/umiak-io/umiak/internal/listing"
)

// Results is the folder in which the CNI library keeps what each pod was given.
const Results = "/var/lib/cni/results"

// ErrKept means that of some pod it cannot be read what the CNI library keeps; all others are looked after.
var ErrKept = errors.New("what the CNI library keeps of a pod cannot be read")

// Restore puts back the chains that are missing or have an older release's rules, of all pods that the CNI library knows of in the folder results and whose
// address is kept in the folder state; it says whether there were any. Where the kernel has no such chains, that is an error.
func Restore(results, state string) (bool, error) {
	pods, bad := running(results, state)
	there, err := chains()
	if err != nil {
		return false, err
	}
	missing := slices.DeleteFunc(pods, func(p Pod) bool { return slices.Contains(there, p.chain()) })
	// Without pods, too: so that it is known whether the kernel can do it.
	return len(missing) > 0, errors.Join(put(missing, false), bad)
}

// running are the pods whose interface is there. What cannot be read is no pod.
func running(results, state string) (out []Pod, bad error) {
	here, err := interfaces()
	if err != nil {
		return nil, err
	}
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
