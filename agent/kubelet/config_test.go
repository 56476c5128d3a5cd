package kubelet

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
)

func config(args ...string) Config {
	return Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, Labels: []string{"room=attic"}, Taints: []string{"a=b:NoSchedule"},
		Args: args, Port: 10250, Dirs: layout.Dirs{Data: "/data", Run: "/run/x"}, Root: "/var/lib/kubelet", PodLogs: "/var/log/pods", ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local",
		ResolvConf: "/etc/resolv.conf", Cgroup: host.Cgroup{Version: 2, Driver: host.DriverCgroupfs}, CgroupRoot: "/", ShutdownGrace: 30 * time.Second,
		MayLowerOOMScore: true, Log: slog.New(slog.DiscardHandler),
	}
}

func TestNothingIsOpenToStrangers(t *testing.T) {
	s, err := config().options()
	if err != nil {
		t.Fatal(err)
	}
	if s.Authentication.Anonymous.Enabled || !s.Authentication.Webhook.Enabled || s.Authorization.Mode != "Webhook" || s.ReadOnlyPort != 0 || s.HealthzPort != 0 || s.EnableProfilingHandler || s.EnableDebugFlagsHandler {
		t.Errorf("%+v", s.KubeletConfiguration)
	}
	if s.Authentication.X509.ClientCAFile != "/data/agent/pki/client-ca.crt" || s.TLSCertFile != "/data/agent/pki/kubelet-serving.crt" || s.TLSMinVersion != "VersionTLS12" {
		t.Errorf("%+v", s.Authentication)
	}
	if s.RootDirectory != "/var/lib/kubelet" || s.PodLogsDir != "/var/log/pods" {
		t.Errorf("root %s, logs %s", s.RootDirectory, s.PodLogsDir)
	}
	for name, path := range map[string]string{"static pods": s.StaticPodPath, "volume plugins": s.VolumePluginDir} {
		if !strings.HasPrefix(path, "/data/agent/") {
			t.Errorf("%s: %s", name, path)
		}
	}
	if s.NodeLabels["room"] != "attic" || len(s.RegisterWithTaints) != 1 || s.NodeIP != "192.168.0.1" {
		t.Errorf("%+v", s.KubeletFlags)
	}
}

func TestTheUsersFlagsWin(t *testing.T) {
	s, err := config("max-pods=20", "eviction_hard=memory.available<10Mi", "feature-gates=EventedPLEG=true", "protect-kernel-defaults=true", "node-status-update-frequency=7s", "node-labels=x=y", "root-dir=/var/lib/kubelet/").options()
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 20 || len(s.EvictionHard) != 1 || s.EvictionHard["memory.available"] != "10Mi" || !s.FeatureGates["EventedPLEG"] || !s.ProtectKernelDefaults || s.NodeStatusUpdateFrequency.Duration != 7*time.Second {
		t.Errorf("%+v", s.KubeletConfiguration)
	}
	if s.NodeLabels["x"] != "y" {
		t.Errorf("%v", s.NodeLabels)
	}
}

func TestEveryMistakeIsNamed(t *testing.T) {
	_, err := config("max-pod=20", "max-pods=many", "config=/x", "v=4", "nonsense=1").options()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`kubelet-arg: the kubelet has no flag "max-pod"; did you mean max-pods?`, `"many"`, "kubelet-arg: config is not taken",
		"kubelet-arg: v is not taken: set log-level", `no flag "nonsense"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
	for arg, want := range map[string]string{"feature-gates=NoSuchGate=true": "NoSuchGate", "max-pods=-1": "maxPods", "root-dir=/mnt/x": "data-dir"} {
		if _, err := config(arg).options(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "kubelet-arg") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	c := config()
	c.Taints = []string{"a=b:Sometimes"}
	if _, err := c.options(); err == nil || !strings.Contains(err.Error(), "node-taint") {
		t.Errorf("got %v", err)
	}
}

func TestWithoutTheCapability(t *testing.T) {
	c := config()
	c.MayLowerOOMScore, c.OOMScoreAdj = false, 0
	s, err := c.options()
	if err != nil || s.OOMScoreAdj != 0 {
		t.Errorf("%v, %v", s.OOMScoreAdj, err)
	}
	if len(c.remarks()) == 0 {
		t.Error("not told")
	}
}
