package host

import (
	"errors"
	"fmt"
	"io/fs"
)

// KubeletSysctls are those that the kubelet sets for the whole machine.
var KubeletSysctls = []string{
	"vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
	"kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
}

// Forward lets the machine pass packets on between pods, nodes and the world. The journal knows what was
// there before. It returns remarks for the log, and an error where pods could not be reached.
func Forward(j *Journal, ipv4, ipv6 bool) (remarks []string, err error) {
	type want struct {
		name, why string
		need      bool
	}
	var wants []want
	if ipv4 {
		wants = append(wants, want{"net.ipv4.ip_forward", "packets of pods could not leave the machine", true},
			want{"net.bridge.bridge-nf-call-iptables", "a pod cannot reach a Service whose endpoint runs on the same node", false})
	}
	if ipv6 {
		wants = append(wants, want{"net.ipv6.conf.all.forwarding", "packets of pods could not leave the machine", true},
			want{"net.bridge.bridge-nf-call-ip6tables", "a pod cannot reach a Service whose endpoint runs on the same node", false})
	}
	if _, err := j.Sysctl("net.bridge.bridge-nf-call-iptables"); errors.Is(err, fs.ErrNotExist) {
		// The kernel loads the other modules by itself when they are used, this one never.
		if err := LoadModule("br_netfilter"); err != nil {
			remarks = append(remarks, err.Error())
		}
	}
	var errs []error
	for _, w := range wants {
		switch err := j.Set(w.name, "1"); {
		case err == nil:
		case w.need:
			errs = append(errs, fmt.Errorf("%w; without it %s", err, w.why))
		case errors.Is(err, fs.ErrNotExist):
			remarks = append(remarks, fmt.Sprintf("the kernel has no %s (module br_netfilter): %s", w.name, w.why))
		default:
			remarks = append(remarks, fmt.Sprintf("%v: %s", err, w.why))
		}
	}
	return remarks, errors.Join(errs...)
}
