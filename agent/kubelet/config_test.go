package kubelet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
)

func config(args ...string) Config {
	return Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, Labels: []string{"room=attic"},
		Taints: []string{"a=b:NoSchedule"},
		Args:   args, Port: 10250, Dirs: layout.Dirs{Data: "/data", Run: "/run/x"}, Root: "/var/lib/kubelet",
		PodLogs: "/var/log/pods", ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local",
		ResolvConf: "/etc/resolv.conf", Cgroup: host.Cgroup{Version: 2, Driver: host.DriverCgroupfs}, CgroupRoot: "/",
		ShutdownGrace:    30 * time.Second,
		MayLowerOOMScore: true, Log: slog.New(slog.DiscardHandler),
	}
}

func TestNothingIsOpenToStrangers(t *testing.T) {
	s, err := config().options()
	if err != nil {
		t.Fatal(err)
	}
	if s.Authentication.Anonymous.Enabled || !s.Authentication.Webhook.Enabled || s.Authorization.Mode != "Webhook" ||
		s.ReadOnlyPort != 0 || s.HealthzPort != 0 || s.EnableProfilingHandler || s.EnableDebugFlagsHandler {
		t.Errorf("%+v", s.KubeletConfiguration)
	}
	if s.Authentication.X509.ClientCAFile != "/data/agent/pki/client-ca.crt" ||
		s.TLSCertFile != "/data/agent/pki/kubelet-serving.crt" || s.TLSMinVersion != "VersionTLS12" {
		t.Errorf("%+v", s.Authentication)
	}
	if s.KubeletConfiguration.SeccompDefault != host.HasSeccomp() || s.PodPidsLimit != podPids ||
		len(s.TLSCipherSuites) == 0 {
		t.Errorf("seccomp %v, processes %d, ciphers %v", s.KubeletConfiguration.SeccompDefault, s.PodPidsLimit,
			s.TLSCipherSuites)
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
	s, err := config("max-pods=20", "seccomp-default=false", "pod-max-pids=-1", "eviction_hard=memory.available<10Mi",
		"feature-gates=EventedPLEG=true", "protect-kernel-defaults=true", "node-status-update-frequency=7s",
		"node-labels=x=y", "root-dir=/var/lib/kubelet/").options()
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 20 || s.KubeletConfiguration.SeccompDefault || s.PodPidsLimit != -1 || len(s.EvictionHard) != 1 ||
		s.EvictionHard["memory.available"] != "10Mi" || !s.FeatureGates["EventedPLEG"] || !s.ProtectKernelDefaults ||
		s.NodeStatusUpdateFrequency.Duration != 7*time.Second {
		t.Errorf("%+v", s.KubeletConfiguration)
	}
	if s.NodeLabels["x"] != "y" {
		t.Errorf("%v", s.NodeLabels)
	}
}

func TestEveryMistakeIsNamed(t *testing.T) {
	_, err := config("max-pod=20", "max-pods=many", "v=loud", "logging-format=json", "nonsense=1").options()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`kubelet-arg: there is no flag "max-pod"; did you mean max-pods?`, `"many"`,
		`kubelet-arg: v: "loud" is not a number`, "kubelet-arg: logging-format cannot be set: set log-format", `no flag "nonsense"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
	for arg, want := range map[string]string{"feature-gates=NoSuchGate=true": "NoSuchGate", "max-pods=-1": "maxPods",
		"root-dir=/mnt/x": "data-dir"} {
		if _, err := config(arg).options(); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "kubelet-arg") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	c := config()
	c.Taints = []string{"a=b:Sometimes"}
	if _, err := c.options(); err == nil || !strings.Contains(err.Error(), "node-taint") {
		t.Errorf("got %v", err)
	}
}

// TestSettingsOfTheKubelet: settings reach its configuration, and flags take precedence.
func TestSettingsOfTheKubelet(t *testing.T) {
	c := config("protect-kernel-defaults=false", "image-credential-provider-config=/flag")
	c.ProtectKernel, c.Address, c.RuntimeSocket = true, netip.MustParseAddr("192.0.2.1"), "/run/crio/crio.sock"
	c.CredentialProviders = CredentialProviders{BinDir: "/bin", Config: "/setting"}
	s, err := c.options()
	if err != nil {
		t.Fatal(err)
	}
	if s.ProtectKernelDefaults || s.Address != "192.0.2.1" || s.ContainerRuntimeEndpoint != "unix:///run/crio/crio.sock" ||
		s.ImageServiceEndpoint != s.ContainerRuntimeEndpoint || s.ImageCredentialProviderBinDir != "/bin" ||
		s.ImageCredentialProviderConfigPath != "/flag" {
		t.Errorf("%+v", s)
	}
	c.Args = nil
	if s, err := c.options(); err != nil || !s.ProtectKernelDefaults || s.ImageCredentialProviderConfigPath != "/setting" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestWhatUmiakOwnsIsRefusedWithWhatToSetInstead(t *testing.T) {
	for arg, want := range map[string]string{
		"address=10.0.0.1": "address cannot be set: set bind-address on an agent",
		"port=1":           "port cannot be set: set kubelet-port", "--root-dir=/x": "its contents are in data-dir",
		"resolv_conf=/x": "set resolv-conf", "node-ip=10.0.0.1": "set node-ip", "hostname-override=x": "set node-name",
		"rotate-certificates": "umiak issues and renews",
		"register-node=false": "has to register", "container-runtime-endpoint=unix:///x": "set container-runtime-endpoint",
		"config=/does/not/exist": "/does/not/exist", "config-dir=/does/not/exist": "/does/not/exist",
	} {
		for where, err := range map[string]error{"check": Config{Args: []string{arg}, Port: 10250}.Check(),
			"start": func() error { _, err := config(arg).options(); return err }()} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: %v", where, arg, err)
			}
		}
	}
	if _, err := config("port=10250", "address=0.0.0.0", "rotate-certificates=false", "read-only-port=10255",
		"pod-manifest-path=/x", "cluster-dns=169.254.20.10").options(); err != nil {
		t.Error(err)
	}
}

func TestFilesOfKubeletConfiguration(t *testing.T) {
	dir := t.TempDir()
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
	write := func(name, text string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain, err := config().options()
	if err != nil {
		t.Fatal(err)
	}
	c := config("config="+write("main.yaml", head+
		"maxPods: 30\nmemorySwap: {swapBehavior: LimitedSwap}\nevictionHard: {memory.available: 7Mi}\n"), "config-dir="+
		filepath.Join(dir, "more"), "pod-max-pids=77")
	write("more/10.conf", head+"maxPods: 50\nregistryPullQPS: 3\n")
	write("more/README", "not read")
	c.ConfigDir = filepath.Join(dir, "own")
	write("own/a.yaml", head+"maxPods: 40\nfailSwapOn: false\n")
	s, err := c.options()
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 50 || s.MemorySwap.SwapBehavior != "LimitedSwap" || s.EvictionHard["memory.available"] != "7Mi" ||
		s.EvictionHard["nodefs.available"] != "5%" || s.RegistryPullQPS != 3 || s.PodPidsLimit != 77 {
		t.Errorf("%+v", s.KubeletConfiguration)
	}
	// What no file names is as it was.
	s.MaxPods, s.MemorySwap, s.EvictionHard, s.RegistryPullQPS, s.PodPidsLimit = plain.MaxPods, plain.MemorySwap, plain.EvictionHard, plain.RegistryPullQPS, plain.PodPidsLimit
	s.TypeMeta = plain.TypeMeta
	if a, b := fmt.Sprintf("%+v", s.KubeletConfiguration), fmt.Sprintf("%+v",
		plain.KubeletConfiguration); !equality.Semantic.DeepEqual(s.KubeletConfiguration, plain.KubeletConfiguration) {
		t.Errorf("changed:\n%s\n%s", a, b)
	}
	for name, want := range map[string]string{
		head + "port: 1\n": "port cannot be set: set kubelet-port", head +
			"authentication: {x509: {clientCAFile: /x}}\n": "authentication.x509 cannot be set", head +
			"nonsense: 1\n": "nonsense",
		"maxPods: 3\n": "x.yaml", head + "maxPods: 30\n---\nmaxPods: 40\n": "a second document begins here",
		"kind: Pod\napiVersion: v1\n": "x.yaml", "": "x.yaml", head + "cgroupRoot: /x\n": "set cgroup-root",
	} {
		file := write("wrong/x.yaml", name)
		c := config("config=" + file)
		if _, err := c.options(); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestLabelsAndTaintsAreNamedPrecisely(t *testing.T) {
	for label, want := range map[string]string{
		"foo": `node-label: "foo" has no value: write foo=VALUE`, "a b=c": `node-label: the key "a b"`,
		"a=b c":                           `node-label: the value "b c" of a`,
		"node-role.kubernetes.io/worker=": "Kubernetes does not let a node set node-role.kubernetes.io/worker on itself; use `umiak kubectl label node NAME",
	} {
		if err := (Config{Labels: []string{label}, Port: 1}).Check(); err == nil ||
			!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", label, err)
		}
	}
	for taint, want := range map[string]string{
		"foo": `node-taint: "foo": it has no effect: write KEY=VALUE:EFFECT`, "foo=bar": "it has no effect",
		"foo:Sometimes":  `the effect "Sometimes" is not one of NoSchedule`,
		"a b:NoSchedule": `the key "a b"`, "foo-:NoSchedule": `the key "foo-"`, "a=b:c:NoSchedule": "effect",
		":NoSchedule": "the key",
	} {
		if err := (Config{Taints: []string{taint}, Port: 1}).Check(); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", taint, err)
		}
	}
	ok := Config{Labels: []string{"a=", "x/y=z", "topology.kubernetes.io/zone=b"},
		Taints: []string{"a:NoExecute", "a=b:NoSchedule", "x/y=:PreferNoSchedule"}, Port: 1}
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
}

func TestShutdownGraceOfTwoSeconds(t *testing.T) {
	for _, d := range []time.Duration{0, 2 * time.Second, 2500 * time.Millisecond, 30 * time.Second} {
		c := config()
		c.ShutdownGrace = d
		if _, err := c.options(); err != nil {
			t.Errorf("%s: %v", d, err)
		}
	}
}

func TestWithoutTheCapability(t *testing.T) {
	c := config()
	c.MayLowerOOMScore, c.OOMScoreAdj = false, 0
	s, err := c.options()
	if err != nil || s.OOMScoreAdj != 0 {
		t.Errorf("%v, %v", s.OOMScoreAdj, err)
	}
	if len(c.warnings()) == 0 {
		t.Error("not told")
	}
}

// TestCredentialProvidersThatUpstreamWouldEndTheProcessFor: what would be os.Exit in the kubelet is an error before.
func TestCredentialProvidersThatUpstreamWouldEndTheProcessFor(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
			os.WriteFile(file, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n"
	const good = head + "providers: [{name: ecr, matchImages: ['*.example.com'], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}]\n"
	bin := filepath.Dir(write("bin/ecr", "#!/bin/sh\n", 0o755))
	write("plain/ecr", "no program", 0o644)
	for name, c := range map[string]struct{ file, bin, want string }{
		"fine":         {write("good.yaml", good, 0o600), bin, ""},
		"no file":      {"/nope", bin, "image-credential-provider-config: stat /nope"},
		"no folder":    {write("good.yaml", good, 0o600), "/nope", "image-credential-provider-bin-dir: stat /nope"},
		"folder alone": {"", bin, "needs image-credential-provider-config"},
		"no providers": {write("none.yaml", head, 0o600), bin, "at least 1 item"},
		"another kind": {write("pod.yaml", "apiVersion: v1\nkind: Pod\n", 0o600), bin,
			"image-credential-provider-config: "},
		"two documents":   {write("two.yaml", good+"---\n"+good, 0o600), bin, "a second document begins here"},
		"no program":      {write("good.yaml", good, 0o600), t.TempDir(), "the program of ecr"},
		"not executable":  {write("good.yaml", good, 0o600), filepath.Join(dir, "plain"), "the program of ecr"},
		"a field too few": {write("few.yaml", head+"providers: [{name: ecr}]\n", 0o600), bin, "matchImages"},
	} {
		args := []string{"image-credential-provider-bin-dir=" + c.bin}
		if c.file != "" {
			args = append(args, "image_credential_provider_config="+c.file)
		}
		for range 2 { // the check may be made again in the same process
			err := (Config{Args: args, Port: 1}).CheckFiles()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
