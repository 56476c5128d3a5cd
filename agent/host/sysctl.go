package host

import (
	"errors"
	"fmt"
	"io/fs"
)

// KubeletSysctls are the sysctls that the kubelet sets for the whole machine.
var KubeletSysctls = []string{
	"vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops",
	"kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
}

// Forward enables the forwarding of packets between pods, nodes and other networks, recording previous values in the
// journal. It returns warnings for the log, and an error if pods would be unreachable.
func Forward(j *Journal, ipv4, ipv6 bool) (warnings []string, err error) {
	type want struct {
		name, why string
		need      bool
	}
	var wants []want
	if ipv4 {
		wants = append(wants, want{"net.ipv4.ip_forward", "packets of pods could not leave the machine", true},
			want{"net.bridge.bridge-nf-call-iptables",
				"a pod cannot reach a Service whose endpoint runs on the same node", false})
	}
	if ipv6 {
		wants = append(wants, want{"net.ipv6.conf.all.forwarding", "packets of pods could not leave the machine", true},
			want{"net.bridge.bridge-nf-call-ip6tables",
				"a pod cannot reach a Service whose endpoint runs on the same node", false})
	}
	if _, err := j.Sysctl("net.bridge.bridge-nf-call-iptables"); errors.Is(err, fs.ErrNotExist) {
		// The kernel loads other modules on first use, but never this one.
		if err := loadModule("br_netfilter"); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	var errs []error
	for _, w := range wants {
		switch err := j.Set(w.name, "1"); {
		case err == nil:
		case w.need:
			errs = append(errs, fmt.Errorf("%w; without it %s", err, w.why))
		case errors.Is(err, fs.ErrNotExist):
			warnings = append(warnings, fmt.Sprintf("the kernel has no %s (module br_netfilter): %s", w.name, w.why))
		default:
			warnings = append(warnings, fmt.Sprintf("%v: %s", err, w.why))
		}
	}
	return warnings, errors.Join(errs...)
}
