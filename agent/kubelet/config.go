package kubelet

import (
	"errors"
	"fmt"
	"io"
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
	taintutils "k8s.io/kubernetes/pkg/util/taints"

	"github.com/umiak-io/umiak/agent/host"
)

// options builds the kubelet's own configuration: umiak's defaults, what the node is told, then the
// user's flags, which win.
func (c Config) options() (*options.KubeletServer, error) {
	flags := options.NewKubeletFlags()
	conf, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("make kubelet configuration: %w", err)
	}
	if err := c.fillFlags(flags); err != nil {
		return nil, err
	}
	if err := c.fillConfig(conf); err != nil {
		return nil, err
	}
	if err := c.applyArgs(flags, conf); err != nil {
		return nil, err
	}
	s := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *conf}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, fmt.Errorf("node-label or kubelet-arg: %w", err)
	}
	gate := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	if err := gate.SetFromMap(conf.FeatureGates); err != nil {
		return nil, fmt.Errorf("kubelet-arg: feature-gates: %w", err)
	}
	if err := validation.ValidateKubeletConfiguration(conf, gate); err != nil {
		return nil, fmt.Errorf("kubelet-arg: %w", err)
	}
	return s, nil
}

func (c Config) fillFlags(f *options.KubeletFlags) error {
	f.KubeConfig = c.Dirs.KubeletKubeconfig()
	f.HostnameOverride = c.NodeName
	f.RootDirectory = c.Root
	f.CertDirectory = c.Dirs.AgentPKI()
	var ips []string
	for _, a := range c.NodeIPs {
		ips = append(ips, a.String())
	}
	f.NodeIP = strings.Join(ips, ",")
	for _, l := range c.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return fmt.Errorf("node-label: %q is not KEY=VALUE", l)
		}
		f.NodeLabels[k] = v
	}
	return nil
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }

func (c Config) fillConfig(k *kubeletconfig.KubeletConfiguration) error {
	pki := c.Dirs.AgentPKI()
	k.Address = "0.0.0.0"
	if len(c.NodeIPs) > 0 && slices.ContainsFunc(c.NodeIPs, netip.Addr.Is6) {
		k.Address = "::"
	}
	k.Port = int32(c.Port)
	k.ReadOnlyPort = 0
	k.HealthzPort = 0
	k.TLSCertFile = filepath.Join(pki, "kubelet-serving.crt")
	k.TLSPrivateKeyFile = filepath.Join(pki, "kubelet-serving.key")
	k.TLSMinVersion = "VersionTLS12"
	k.RotateCertificates = false // umiak renews the files, client-go and the kubelet follow them
	k.Authentication.Anonymous.Enabled = false
	k.Authentication.Webhook.Enabled = true
	k.Authentication.X509.ClientCAFile = filepath.Join(pki, "client-ca.crt")
	k.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook

	k.ContainerRuntimeEndpoint = "unix://" + c.Dirs.ContainerdSocket()
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
	// Without CAP_SYS_RESOURCE the kernel refuses every value below the one that umiak was started with.
	if !c.MayLowerOOMScore {
		k.OOMScoreAdj = int32(max(c.OOMScoreAdj, int(k.OOMScoreAdj)))
	}
	if _, most, err := host.OpenFiles(); err == nil && !c.MayLowerOOMScore {
		k.MaxOpenFiles = min(k.MaxOpenFiles, int64(min(most, 1<<40))) // the same capability raises this limit
	}
	for _, t := range c.Taints {
		taints, _, err := taintutils.ParseTaints([]string{t})
		if err != nil {
			return fmt.Errorf("node-taint: %w", err)
		}
		k.RegisterWithTaints = append(k.RegisterWithTaints, taints...)
	}
	k.RegisterNode = true

	// Shutdown of the machine: pods marked critical get the last third of the time. It is logind that asks
	// the kubelet; when only umiak stops, nobody does, and pods run on.
	if c.ShutdownGrace > 0 && host.HasLogind() {
		k.ShutdownGracePeriod = metav1.Duration{Duration: c.ShutdownGrace}
		k.ShutdownGracePeriodCriticalPods = metav1.Duration{Duration: c.ShutdownGrace / 3}
	}

	// No iptables chains: the service proxy is ours and speaks nftables.
	k.MakeIPTablesUtilChains = false
	k.HairpinMode = "none" // the CNI configuration says it

	// Small disks: a percentage alone evicts from a 16 GB card with gigabytes free, and a card of 4 GB
	// needs more than a fixed amount leaves, so images are collected long before pods are evicted.
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

	// Quiet: what follows bounds what an idle node asks, computes and writes.
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

// StaticPods is the folder of static pods' manifests.
func (c Config) StaticPods() string { return filepath.Join(c.Dirs.Agent(), "pod-manifests") }

// notTaken are kubelet flags that mean nothing here, with what to do instead.
var notTaken = map[string]string{
	"config":                     "set the flags themselves",
	"config-dir":                 "set the flags themselves",
	"bootstrap-kubeconfig":       "umiak gives the node its identity",
	"rotate-certificates":        "umiak renews the node's certificates",
	"rotate-server-certificates": "umiak renews the node's certificates",
	"lock-file":                  "umiak locks its data-dir",
	"exit-on-lock-contention":    "umiak locks its data-dir",
	"v":                          "set log-level",
	"vmodule":                    "set log-level",
	"logging-format":             "set log-format",
	"hostname-override":          "set node-name",
	"kubeconfig":                 "umiak gives the node its identity",
	"help":                       "see the kubelet's reference",
	"version":                    "see `umiak --version`",
}

// applyArgs parses the user's flags over what stands in the two structs.
func (c Config) applyArgs(flags *options.KubeletFlags, conf *kubeletconfig.KubeletConfiguration) error {
	fs := pflag.NewFlagSet("kubelet-arg", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.SetOutput(io.Discard)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, conf)
	var errs []error
	for _, a := range c.Args {
		name, value, _ := strings.Cut(a, "=")
		name = strings.ReplaceAll(name, "_", "-")
		if why, no := notTaken[name]; no {
			errs = append(errs, fmt.Errorf("kubelet-arg: %s is not taken: %s", name, why))
			continue
		}
		if name == "root-dir" {
			if filepath.Clean(value) != c.Root {
				errs = append(errs, fmt.Errorf("kubelet-arg: root-dir is not taken: it is %s, and its contents are on the disk of data-dir", c.Root))
			}
			continue
		}
		if fs.Lookup(name) == nil {
			errs = append(errs, fmt.Errorf("kubelet-arg: the kubelet has no flag %q%s", name, near(name, fs)))
			continue
		}
		if err := fs.Set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("kubelet-arg: %w", err))
		}
	}
	return errors.Join(errs...)
}

// near names flags that begin like an unknown one, or that it begins like.
func near(name string, fs *pflag.FlagSet) string {
	var like []string
	fs.VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, name) || strings.HasPrefix(name, f.Name) && len(f.Name) > 2 {
			like = append(like, f.Name)
		}
	})
	if len(like) == 0 || len(like) > 4 {
		return ""
	}
	return "; did you mean " + strings.Join(like, " or ") + "?"
}

// remarks are for the log, once.
func (c Config) remarks() []string {
	var out []string
	if c.Cgroup.Version == 1 {
		out = append(out, "this machine has cgroup v1, which Kubernetes is about to give up; boot with cgroup v2 if you can")
	}
	if c.ShutdownGrace > 0 && !host.HasLogind() {
		out = append(out, "there is no systemd-logind to delay the machine's shutdown: pods are not stopped in order then")
	}
	if !c.MayLowerOOMScore {
		out = append(out, "this machine does not let umiak lower oom_score_adj (CAP_SYS_RESOURCE is missing): when memory runs out, umiak is no better protected than pods")
	}
	return out
}
