package kubelet

import (
	"path/filepath"
	"reflect"

	"k8s.io/kubernetes/cmd/kubelet/app/options"

	"github.com/umiak-io/umiak/agent/host/folders"
	"github.com/umiak-io/umiak/internal/componentflags"
)

// owned is an option of the kubelet that other parts of umiak rely on. A user's value that differs from umiak's is
// refused, from a flag or a file.
type owned struct {
	flag    string // "" if only a file can set it
	field   string // of KubeletConfiguration; "" if only a flag can set it
	instead string // what the user should do
	value   func(*options.KubeletServer) any
}

const (
	certificates = "umiak issues and renews the node's certificates"
	identity     = "umiak gives the node its identity"
	builtIn      = "set container-runtime-endpoint"
	locked       = "umiak locks its data-dir"
)

type server = options.KubeletServer

var ownedOptions = []owned{
	{"address", "address", "set bind-address on an agent; kubelet-port-from says who else reaches the port", func(s *server) any { return s.Address }},
	{"port", "port", "set kubelet-port", func(s *server) any { return s.Port }},
	{"enable-server", "enableServer", "logs, exec and metrics need it", func(s *server) any { return s.EnableServer }},
	{"root-dir", "", "it is " + folders.KubeletRoot + ", and its contents are in data-dir",
		func(s *server) any { return filepath.Clean(s.RootDirectory) }},
	{"", "podLogsDir", "it is " + folders.PodLogs + ", and its contents are in data-dir",
		func(s *server) any { return s.PodLogsDir }},
	{"cert-dir", "", certificates, func(s *server) any { return s.CertDirectory }},
	{"tls-cert-file", "tlsCertFile", certificates, func(s *server) any { return s.TLSCertFile }},
	{"tls-private-key-file", "tlsPrivateKeyFile", certificates, func(s *server) any { return s.TLSPrivateKeyFile }},
	{"rotate-certificates", "rotateCertificates", certificates, func(s *server) any { return s.RotateCertificates }},
	{"rotate-server-certificates", "serverTLSBootstrap", certificates,
		func(s *server) any { return s.ServerTLSBootstrap }},
	{"client-ca-file", "authentication.x509", certificates,
		func(s *server) any { return s.Authentication.X509.ClientCAFile }},
	{"kubeconfig", "", identity, func(s *server) any { return s.KubeConfig }},
	{"bootstrap-kubeconfig", "", identity, func(s *server) any { return s.BootstrapKubeconfig }},
	{"hostname-override", "", "set node-name", func(s *server) any { return s.HostnameOverride }},
	{"node-ip", "", "set node-ip", func(s *server) any { return s.NodeIP }},
	{"register-node", "registerNode", "a node of a cluster has to register",
		func(s *server) any { return s.RegisterNode }},
	{"runonce", "runOnce", "the node would end after its static pods", func(s *server) any { return s.RunOnce }},
	{"container-runtime-endpoint", "containerRuntimeEndpoint", builtIn,
		func(s *server) any { return s.ContainerRuntimeEndpoint }},
	{"image-service-endpoint", "imageServiceEndpoint", builtIn, func(s *server) any { return s.ImageServiceEndpoint }},
	{"cgroup-driver", "cgroupDriver", "umiak takes the driver that this machine needs, for containerd as well",
		func(s *server) any { return s.CgroupDriver }},
	{"cgroup-root", "cgroupRoot", "set cgroup-root", func(s *server) any { return s.CgroupRoot }},
	{"cluster-domain", "clusterDomain", "set cluster-domain on the servers",
		func(s *server) any { return s.ClusterDomain }},
	{"resolv-conf", "resolvConf", "set resolv-conf", func(s *server) any { return s.ResolverConfig }},
	{"make-iptables-util-chains", "makeIPTablesUtilChains", "umiak uses nftables",
		func(s *server) any { return s.MakeIPTablesUtilChains }},
	{"lock-file", "", locked, func(s *server) any { return s.LockFilePath }},
	{"exit-on-lock-contention", "", locked, func(s *server) any { return s.ExitOnLockContention }},
	{"", "logging", "set log-level and log-format", func(s *server) any { return s.Logging }},
}

// refused returns, for each owned option whose value differs between base and set, its name and what to do instead.
func refused(base, set *options.KubeletServer, name func(owned) string) map[string]string {
	out := map[string]string{}
	for _, o := range ownedOptions {
		if n := name(o); n != "" && !reflect.DeepEqual(o.value(base), o.value(set)) {
			out[n] = o.instead
		}
	}
	return out
}

// unsupportedFlags are flags of the kubelet's command that a kubelet in this process does not have.
var unsupportedFlags = map[string]string{
	"logging-format": "set log-format",
	"help":           "see the kubelet's reference",
	"version":        "see `umiak version`",
}

// configurationFiles returns the values of the flags config and config-dir, and the other arguments.
func configurationFiles(args []string) (file, dir string, rest []string) {
	for _, a := range args {
		switch name, value, alone := componentflags.Split(a); {
		case name == "config" && !alone:
			file = value
		case name == "config-dir" && !alone:
			dir = value
		default:
			rest = append(rest, a)
		}
	}
	return file, dir, rest
}
