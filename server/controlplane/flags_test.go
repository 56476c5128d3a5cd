package controlplane

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

func TestUsersFlagsWinAndListsAddUp(t *testing.T) {
	var sets cliflag.NamedFlagSets
	fs := sets.FlagSet("a")
	ttl := fs.Duration("event-ttl", 0, "")
	plugins := fs.StringSlice("enable-admission-plugins", []string{"Default"}, "")
	servers := fs.StringSlice("etcd-servers", nil, "")
	own := flags{{"event-ttl", "1h"}, {"enable-admission-plugins", "NodeRestriction"}, {"etcd-servers", "unix:///a"}}
	err := parse(sets, own, "kube-apiserver-arg", []string{"event-ttl=2h",
		"enable-admission-plugins=AlwaysPullImages", "etcd-servers=http://b", "etcd-servers=http://c"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ttl.Hours() != 2 {
		t.Errorf("event-ttl is %v", ttl)
	}
	if !slices.Equal(*plugins, []string{"NodeRestriction", "AlwaysPullImages"}) {
		t.Errorf("plugins are %v", *plugins)
	}
	if !slices.Equal(*servers, []string{"http://b", "http://c"}) {
		t.Errorf("servers are %v", *servers)
	}
}

func TestEverythingWrongIsTold(t *testing.T) {
	var sets cliflag.NamedFlagSets
	sets.FlagSet("a").AddFlag(&pflag.Flag{Name: "count", Value: new(number)})
	err := parse(sets, nil, "kube-scheduler-arg", []string{"count=x", "nothing=1"}, nil)
	if err == nil || !strings.Contains(err.Error(), `no flag "nothing"`) || !strings.Contains(err.Error(), "count") {
		t.Errorf("got %v", err)
	}
}

type number struct{}

func (*number) String() string   { return "" }
func (*number) Type() string     { return "number" }
func (*number) Set(string) error { return strings.NewReader("").UnreadByte() }

func TestWhatUmiakOwnsIsRefusedWithWhatToSetInstead(t *testing.T) {
	s := Settings{Bind: "0.0.0.0", Port: 6443, Advertise: func() string { return "192.0.2.1" },
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		NodePorts:   "30000-32767", ClusterDomain: "cluster.local"}
	if err := CheckArgs(s); err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{
		"secure-port=7443":        "secure-port cannot be set: set https-listen-port",
		"--etcd-servers=http://x": "set datastore-endpoint", "tls_cert_file=/x": "rotate-ca --from",
		"authorization-mode=RBAC": "it needs Node and RBAC", "oidc-issuer-url=http://x": "oidc",
		"enable-admission-plugins=NoSuchPlugin": "NoSuchPlugin",
		"authentication-config=/does/not/exist": "kube-apiserver-arg: failed to load authentication configuration",
		"event-ttls=1h":                         "did you mean event-ttl?", "anonymous-auth=perhaps": "anonymous-auth",
		"min-request-timeout=-5":      "min-request-timeout can not be negative",
		"runtime-config=nope/v1=true": "unknown api groups nope",
	} {
		c := s
		c.APIServerArgs = []string{arg}
		if err := CheckArgs(c); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.HasPrefix(err.Error(), "kube-apiserver-arg: ") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	// Not by CheckArgs: upstream's registry of gates keeps what a process has parsed.
	if err := checkGates("kube-apiserver-arg", []string{"feature-gates=NoSuchGate=true"}); err == nil ||
		!strings.Contains(err.Error(), "kube-apiserver-arg: feature-gates: unrecognized feature gate: NoSuchGate") {
		t.Errorf("got %v", err)
	}
	for _, arg := range []string{"secure-port=6443", "authorization-mode=Node,RBAC,AlwaysAllow", "event-ttl=2h",
		"enable-admission-plugins=AlwaysPullImages,PodNodeSelector", "anonymous-auth", "v=2"} {
		c := s
		c.APIServerArgs = []string{arg}
		if err := CheckArgs(c); err != nil {
			t.Errorf("%s: %v", arg, err)
		}
	}
	for arg, want := range map[string]string{"tls-cert-file=/x": "umiak issues and renews",
		"leader-elect": "umiak decides which server runs it", "kubeconfig=/x": "its own API server"} {
		c := s
		c.ControllerManagerArgs, c.SchedulerArgs = []string{arg}, []string{arg}
		err := CheckArgs(c)
		if err == nil || !strings.Contains(err.Error(), "kube-controller-manager-arg: "+arg[:4]) ||
			!strings.Contains(err.Error(), "kube-scheduler-arg: "+arg[:4]) || strings.Count(err.Error(), want) != 2 {
			t.Errorf("%s: %v", arg, err)
		}
	}
	s.ControllerManagerArgs, s.SchedulerArgs = []string{"leader-elect=false", "bind-address=0.0.0.0",
		"node-cidr-mask-size=25"}, []string{"leader-elect=false", "bind-address=::", "secure-port=20259"}
	if err := CheckArgs(s); err != nil {
		t.Error(err)
	}
	s.ControllerManagerArgs = []string{"controllers=*,-no-such-controller"}
	if err := CheckArgs(s); err == nil || !strings.Contains(err.Error(), "kube-controller-manager-arg") {
		t.Errorf("got %v", err)
	}
	for _, arg := range []string{"show-hidden-metrics-for-version=nope"} {
		s.ControllerManagerArgs, s.SchedulerArgs = nil, []string{arg}
		if err := CheckArgs(s); err == nil || !strings.Contains(err.Error(), "kube-scheduler-arg") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

func TestHealthNamesWhatIsWrong(t *testing.T) {
	h := &Health{}
	var r running
	r.set("waiting for its caches")
	h.Register("b", r.check)
	h.Register("a", (&running{}).check)
	rep := h.Report(t.Context())
	if len(rep) != 2 || !rep[0].Healthy || rep[1].Healthy || rep[1].Message != "waiting for its caches" {
		t.Errorf("got %+v", rep)
	}
}

// TestBenchmarkOfTheControllers: what the CIS benchmark wants of those that do not listen, so that e2e cannot ask
// them (TestCISBenchmark).
func TestBenchmarkOfTheControllers(t *testing.T) {
	s := Settings{Files: Files{ServiceAccountKey: "a", ServerCA: "b"}}
	for what, f := range map[string]struct {
		flags flags
		want  flags
	}{
		"controllers": {controllerManagerFlags(s),
			flags{{"terminated-pod-gc-threshold", "1000"}, {"profiling", "false"},
				{"use-service-account-credentials", "true"},
				{"service-account-private-key-file", "a"}, {"root-ca-file", "b"}, {"secure-port", "0"}}},
		"scheduler": {schedulerFlags(s), flags{{"profiling", "false"}, {"secure-port", "0"}}},
	} {
		for _, w := range f.want {
			if !slices.Contains(f.flags, w) {
				t.Errorf("%s: no %s=%s in %v", what, w.name, w.value, f.flags)
			}
		}
		if slices.ContainsFunc(f.flags, func(f flag) bool { return f.name == "feature-gates" }) {
			t.Errorf("%s: a gate is set, RotateKubeletServerCertificate perhaps", what)
		}
	}
}

// TestMetricsPorts: a component holds its port if the user's flags ask for one, upstream's unless they name another.
func TestMetricsPorts(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for args, want := range map[string][]int{"": nil, "bind-address=0.0.0.0": {10259}, "secure-port=20259": {20259}} {
		sched, err := newScheduler(Settings{SchedulerArgs: strings.Fields(args)}, &Health{}, log)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, h := range (&ControlPlane{ControllerManager: &ControllerManager{}, Scheduler: sched}).MetricsPorts() {
			got = append(got, h.Port)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", args, got, want)
		}
	}
	p := &ControlPlane{ControllerManager: &ControllerManager{port: metricsPort{port: 10257}}}
	if got := p.MetricsPorts(); len(got) != 1 || got[0].Port != 10257 || got[0].Holder != "kube-controller-manager" {
		t.Errorf("without a scheduler: %v", got)
	}
}
