package proxy

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseFlags(t *testing.T) {
	prefix, at := netip.MustParsePrefix, netip.MustParseAddrPort
	for text, want := range map[string]Flags{
		"":                                                {},
		"--metrics-bind-address=0.0.0.0:10249":            {Metrics: at("0.0.0.0:10249")},
		"metrics_bind_address=0.0.0.0":                    {Metrics: at("0.0.0.0:10249")},
		"metrics-bind-address=[::1]":                      {Metrics: at("[::1]:10249")},
		"nodeport-addresses=10.0.0.7/8,fd00::/8":          {NodePortAddresses: []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/8")}},
		"nodeport-addresses=primary":                      {NodePortPrimary: true},
		"proxy-mode=ipvs masquerade-all v=4":              {Ineffective: []string{"masquerade-all", "proxy-mode", "v"}},
		"metrics-bind-address=10.0.0.1:9 oom-score-adj=0": {Metrics: at("10.0.0.1:9"), Ineffective: []string{"oom-score-adj"}},
	} {
		got, err := ParseFlags(strings.Fields(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if remarks := got.Remarks(); (len(remarks) > 0) != (len(want.Ineffective) > 0) {
			t.Errorf("%s: %q", text, remarks)
		}
	}
	for _, text := range []string{"metrics-bind-address=:10249", "metrics-bind-address=10.0.0.1:0",
		"nodeport-addresses=eth0", "nodeport-addresses=primary,10.0.0.0/8", "no-such=1", "nodeport-addresses"} {
		if got, err := ParseFlags([]string{text}); err == nil || !strings.HasPrefix(err.Error(), "kube-proxy-arg: ") {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	ips := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}
	if got := (Flags{NodePortPrimary: true}).nodePorts(ips); !reflect.DeepEqual(got,
		[]netip.Prefix{prefix("10.0.0.5/32"), prefix("fd00::5/128")}) {
		t.Errorf("primary: %v", got)
	}
	if got := (Flags{NodePortPrimary: true}).nodePorts(nil); !reflect.DeepEqual(got,
		[]netip.Prefix{prefix("0.0.0.0/32"), prefix("::/128")}) {
		t.Errorf("primary on a node without addresses: %v, which must not stand for all", got)
	}
}
