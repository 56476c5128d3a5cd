package kubelet

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/tlspolicy"
)

// options builds the kubelet's configuration: umiak's defaults, the node's values, then the user's files and flags,
// which take precedence except for values that other parts of umiak rely on (ownedOptions).
func (c Config) options() (*options.KubeletServer, error) {
	flags := options.NewKubeletFlags()
	conf, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("create kubelet configuration: %w", err)
	}
	if err := errors.Join(c.fillFlags(flags), c.fillConfig(conf)); err != nil {
		return nil, err
	}
	s := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *conf}
	base := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *conf.DeepCopy()}
	if err := errors.Join(c.applyFiles(s, base), c.applyArgs(s, base)); err != nil {
		return nil, err
	}
	s.RootDirectory = base.RootDirectory // the user's value may end with a slash
	if err := checkLabels("kubelet-arg: node-labels", s.NodeLabels); err != nil {
		return nil, err
	}
	if err := options.ValidateKubeletFlags(&s.KubeletFlags); err != nil {
		return nil, fmt.Errorf("kubelet-arg: %w", err)
	}
	gate := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	if err := gate.SetFromMap(s.FeatureGates); err != nil {
		return nil, fmt.Errorf("kubelet-arg: feature-gates: %w", err)
	}
	if err := validation.ValidateKubeletConfiguration(&s.KubeletConfiguration, gate); err != nil {
		return nil, fmt.Errorf("kubelet-arg: %w", err)
	}
	return s, nil
}

// Check validates the user's part of the configuration, before anything about the cluster is known.
func (c Config) Check() error {
	c.NodeName = "node"
	c.Dirs, c.Root, c.PodLogs = layout.Default, folders.KubeletRoot, folders.PodLogs
	c.Cgroup = host.Cgroup{Version: 2, Driver: host.DriverCgroupfs}
	c.CgroupRoot, c.ClusterDomain, c.ResolvConf = "/", "cluster.local", "/etc/resolv.conf"
	_, errLabels := parseLabels(c.Labels)
	_, errTaints := parseTaints(c.Taints)
	c.Labels, c.Taints = nil, nil
	_, err := c.options()
	return errors.Join(errLabels, errTaints, err)
}

func (c Config) fillFlags(f *options.KubeletFlags) error {
	f.KubeConfig = c.Dirs.KubeletKubeconfig()
	f.HostnameOverride = c.NodeName
	f.RootDirectory = c.Root
	f.CertDirectory = c.Dirs.AgentPKI()
	f.ImageCredentialProviderBinDir = c.CredentialProviders.BinDir
	f.ImageCredentialProviderConfigPath = c.CredentialProviders.Config
	var ips []string
	for _, a := range c.NodeIPs {
		ips = append(ips, a.String())
	}
	f.NodeIP = strings.Join(ips, ",")
	labels, err := parseLabels(c.Labels)
	if err != nil {
		return err
	}
	maps.Copy(f.NodeLabels, labels)
	return nil
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }

func (c Config) fillConfig(k *kubeletconfig.KubeletConfiguration) error {
	pki := c.Dirs.AgentPKI()
	k.Address = "0.0.0.0"
	if len(c.NodeIPs) > 0 && slices.ContainsFunc(c.NodeIPs, netip.Addr.Is6) {
		k.Address = "::"
	}
	if c.Address.IsValid() {
		k.Address = c.Address.String()
	}
	k.Port = int32(c.Port)
	k.ReadOnlyPort = 0
	k.HealthzPort = 0
	k.TLSCertFile = filepath.Join(pki, "kubelet-serving.crt")
	k.TLSPrivateKeyFile = filepath.Join(pki, "kubelet-serving.key")
	k.TLSMinVersion = "VersionTLS12"
	k.TLSCipherSuites = tlspolicy.CipherSuites()
	k.RotateCertificates = false // umiak renews the files; client-go and the kubelet reload them
	k.Authentication.Anonymous.Enabled = false
	k.Authentication.Webhook.Enabled = true
	k.Authentication.X509.ClientCAFile = filepath.Join(pki, "client-ca.crt")
	k.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook

	k.ContainerRuntimeEndpoint = "unix://" + c.runtimeSocket()
	k.ImageServiceEndpoint = k.ContainerRuntimeEndpoint
	k.PodLogsDir = c.PodLogs
	k.StaticPodPath = c.StaticPods()
	k.VolumePluginDir = filepath.Join(c.Dirs.Agent(), "volume-plugins")
	k.ClusterDNS = c.ClusterDNS
	k.ClusterDomain = c.ClusterDomain
	k.ResolverConfig = c.ResolvConf

	k.CgroupDriver = c.Cgroup.Driver
	k.CgroupRoot = c.CgroupRoot
	k.FailCgroupV1 = false
	k.FailSwapOn = false
	k.ProtectKernelDefaults = c.ProtectKernel
	// Without CAP_SYS_RESOURCE, the kernel refuses values below the current one.
	if !c.MayLowerOOMScore {
		k.OOMScoreAdj = int32(max(c.OOMScoreAdj, int(k.OOMScoreAdj)))
	}
	if _, most, err := host.OpenFiles(); err == nil && !c.MayLowerOOMScore {
		k.MaxOpenFiles = min(k.MaxOpenFiles, int64(min(most, 1<<40))) // the same capability raises this limit
	}
	var err error
	if k.RegisterWithTaints, err = parseTaints(c.Taints); err != nil {
		return err
	}
	k.RegisterNode = true

	// On a machine shutdown, critical pods get the last third of the time, in whole seconds as the kubelet counts.
	// logind triggers it; when only umiak stops, pods keep running.
	if c.ShutdownGrace > 0 && host.HasLogind() {
		k.ShutdownGracePeriod = metav1.Duration{Duration: c.ShutdownGrace}
		k.ShutdownGracePeriodCriticalPods = metav1.Duration{Duration: max(time.Second,
			(c.ShutdownGrace / 3).Truncate(time.Second))}
	}

	// Defaults that protect the node from pods: the runtime's seccomp profile, where the kernel has seccomp, and a PID
	// limit that stops a fork bomb.
	k.SeccompDefault = host.HasSeccomp()
	k.PodPidsLimit = podPids

	// No iptables chains: the service proxy is umiak's and uses nftables.
	k.MakeIPTablesUtilChains = false
	k.HairpinMode = "none" // set in the CNI configuration

	// Small disks: the upstream thresholds of 10 and 15 percent evict from a 16 GB card with gigabytes free, and on a
	// card of 4 GB a fixed amount is too much. Images are collected long before pods are evicted.
	k.EvictionHard = map[string]string{
		"memory.available":  "100Mi",
		"nodefs.available":  "5%",
		"imagefs.available": "5%",
		"nodefs.inodesFree": "4%", "imagefs.inodesFree": "4%",
	}
	k.EvictionMinimumReclaim = map[string]string{"nodefs.available": "5%", "imagefs.available": "5%"}
	k.ImageGCHighThresholdPercent = 85
	k.ImageGCLowThresholdPercent = 75
	k.MaxPods = 110
	k.SerializeImagePulls = false
	parallel := int32(4)
	k.MaxParallelImagePulls = &parallel

	// Low idle load: these values bound what an idle node requests, computes and writes.
	k.NodeStatusUpdateFrequency = seconds(10)
	k.NodeStatusReportFrequency = seconds(300)
	k.NodeLeaseDurationSeconds = 40
	k.FileCheckFrequency = seconds(300) // inotify reports changes at once
	k.VolumeStatsAggPeriod = seconds(300)
	k.ContainerLogMonitorInterval = seconds(30)
	k.CPUManagerReconcilePeriod = seconds(30)
	k.EventRecordQPS = 10
	k.EventBurst = 50
	k.NodeStatusMaxImages = 25
	k.EnableProfilingHandler = false
	k.EnableDebugFlagsHandler = false
	return nil
}

// runtimeSocket is the CRI socket of the node's container runtime.
func (c Config) runtimeSocket() string { return cmp.Or(c.RuntimeSocket, c.Dirs.ContainerdSocket()) }

// seccompFlag is the flag for the configuration field SeccompDefault.
const seccompFlag = "seccomp-default"

// podPids is the default limit of processes and threads per pod.
const podPids = 4096

// StaticPods is the folder of static pod manifests.
func (c Config) StaticPods() string { return filepath.Join(c.Dirs.Agent(), "pod-manifests") }

// applyFiles merges the user's KubeletConfiguration files into s: the file that kubelet-arg names as config, the
// drop-ins of kubelet-config-dir, and those of the folder that kubelet-arg names as config-dir.
func (c Config) applyFiles(s, base *options.KubeletServer) error {
	main, dir, _ := configurationFiles(c.Args)
	var files []string
	if main != "" {
		files = append(files, main)
	}
	local, err := dropins(c.ConfigDir, false)
	if err != nil {
		return err
	}
	more, err := dropins(dir, true)
	if err != nil {
		return err
	}
	files = slices.Concat(files, local, more)
	var errs []error
	for _, file := range files {
		before := s.KubeletConfiguration.DeepCopy()
		if err := mergeFile(&s.KubeletConfiguration, file); err != nil {
			errs = append(errs, err)
			continue
		}
		for field, what := range refused(base, s, func(o owned) string { return o.field }) {
			errs = append(errs, fmt.Errorf("%s: %s cannot be set: %s", file, field, what))
			s.KubeletConfiguration = *before // report it once
		}
	}
	return errors.Join(errs...)
}

// applyArgs parses the user's flags into s.
func (c Config) applyArgs(s, base *options.KubeletServer) error {
	const key = "kubelet-arg"
	fs := pflag.NewFlagSet(key, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard)
	s.KubeletFlags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, &s.KubeletConfiguration)
	_, _, args := configurationFiles(c.Args)
	_, args, errV := componentflags.TakeVerbosity(key, args) // the process's log has it, see Config.Verbosity of agent
	if err := errors.Join(errV, componentflags.Set(fs, key, args,
		func(name, _ string) string { return unsupportedFlags[name] })); err != nil {
		return err
	}
	if fs.Changed(seccompFlag) { // upstream enables it if either flag or configuration is true
		s.KubeletConfiguration.SeccompDefault = s.KubeletFlags.SeccompDefault
	}
	var errs []error
	for flag, what := range refused(base, s, func(o owned) string { return o.flag }) {
		errs = append(errs, fmt.Errorf("%s: %s cannot be set: %s", key, flag, what))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// warnings returns messages that a start logs once.
func (c Config) warnings() []string {
	var out []string
	if c.Cgroup.Version == 1 {
		out = append(out, "this machine uses cgroup v1, which Kubernetes will drop; boot with cgroup v2 if possible")
	}
	if c.ShutdownGrace > 0 && !host.HasLogind() {
		out = append(out, "systemd-logind is missing, which delays a machine's shutdown: pods are not stopped in order")
	}
	if !c.MayLowerOOMScore {
		out = append(
			out, "umiak cannot lower oom_score_adj (CAP_SYS_RESOURCE is missing): when memory runs out, umiak is not protected more than pods")
	}
	return out
}
