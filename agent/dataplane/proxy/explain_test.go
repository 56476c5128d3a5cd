package proxy

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/wellknown"
)

var record = flag.Bool("record", false, "write the golden files anew (and fail)")

// told is a kernel that has everything but what a test takes away.
type told struct {
	missing string
	list    []flow
}

func (k told) inspect(cfg rules.Config, elems []rules.Elem) (map[rules.Elem]string, error) {
	out := map[rules.Elem]string{}
	for _, e := range elems {
		if k.missing != "" && strings.HasPrefix(cfg.Line(e), k.missing) {
			out[e] = "missing"
		}
	}
	return out, nil
}
func (k told) flows(ruleset.Family) ([]flow, error) { return k.list, nil }

func TestExplain(t *testing.T) {
	ap := netip.MustParseAddrPort
	flows := []flow{{rules.TCP, ap("10.43.8.1:80"), ap("10.42.8.11:8080")},
		{rules.TCP, ap("203.0.113.1:30080"), ap("10.42.8.11:8080")},
		{rules.UDP, ap("10.43.8.1:80"), ap("10.42.8.11:8080")},
		{rules.TCP, ap("10.42.8.11:8080"), ap("10.42.8.11:8080")}}
	for name, c := range map[string]struct {
		svc  *v1.Service
		eps  []string
		have told
	}{
		"cluster-ip": {labService("web", "10.43.8.1"), []string{"a", "b notready", "remote terminating"},
			told{list: flows}},
		"no-endpoints": {labService("web", "10.43.8.1"), nil, told{}},
		"headless":     {labService("web", v1.ClusterIPNone), []string{"a"}, told{}},
		"external-name": {labService("web", "", func(s *v1.Service) {
			s.Spec.Type,
				s.Spec.ExternalName = v1.ServiceTypeExternalName, "example.org"
		}), nil, told{}},
		"missing":  {labService("web", "10.43.8.1"), []string{"a"}, told{missing: "services-1"}},
		"topology": {labService("web", "10.43.8.1"), []string{"a zone=z1", "b zone=z2"}, told{}},
		"load-balancer": {labService("web", "10.43.8.1", func(s *v1.Service) {
			vip := v1.LoadBalancerIPModeVIP
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = v1.ServiceTypeLoadBalancer, v1.ServiceExternalTrafficPolicyLocal
			s.Spec.Ports[0].NodePort, s.Spec.SessionAffinity = 30080, v1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: new(int32)}}
			*s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = 3600
			s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"}
			s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: labNode.String(), IPMode: &vip},
				{IP: "198.51.100.1", IPMode: &vip}}
			s.Status.Conditions = []metav1.Condition{{Type: "umiak.io/LoadBalancer", Status: metav1.ConditionTrue,
				Reason:  "ServedOnSomeNodes",
				Message: "not on all nodes: port 80/TCP is used by a program of node node"}}
		}), []string{"a", "remote"}, told{list: flows}},
	} {
		t.Run(name, func(t *testing.T) {
			node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node",
				Labels:      map[string]string{v1.LabelTopologyZone: "z1"},
				Annotations: map[string]string{wellknown.HostPorts: "80/TCP"}},
				Spec: v1.NodeSpec{PodCIDRs: []string{"10.42.8.0/24"}},
				Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP,
					Address: labNode.String()}}}}
			got, err := explain(c.svc, node,
				[]discovery.EndpointSlice{*labSlice("web", v1.ProtocolTCP, 8080, c.eps...)}, nil, c.have)
			if err != nil {
				t.Fatal(err)
			}
			if got.Wrong() != (c.have.missing != "") {
				t.Error("Wrong() is wrong")
			}
			var b bytes.Buffer
			if err := got.Print(&b); err != nil {
				t.Fatal(err)
			}
			if name == "cluster-ip" {
				e := json.NewEncoder(&b)
				e.SetIndent("", "  ")
				if err := e.Encode(got); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join("testdata", "explain-"+name+".txt")
			if *record {
				_ = os.MkdirAll("testdata", 0o755)
				t.Error("recorded", os.WriteFile(file, b.Bytes(), 0o644))
				return
			}
			want, err := os.ReadFile(file)
			if err != nil || string(want) != b.String() {
				t.Errorf("%v; got\n%s", err, b.String())
			}
		})
	}
}
