package k3s

import (
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/config"
)

// Keys returns k3s' settings for a program that can be a server or, with nodeOnly, only a node that joins one.
func Keys(nodeOnly bool) config.Foreign {
	return config.Foreign{
		Program: "k3s", NodeOnly: nodeOnly, FileEnv: "K3S_CONFIG_FILE", EnvPrefix: "K3S_",
		Keys: slices.Concat(cluster, network, datastore, snapshots, components, node, runtime, logs, deprecated),
	}
}

// Snapshots returns the names of settings that `k3s etcd-snapshot` takes as flags, and the whole table with them, for
// reading the settings.
func Snapshots() (flags, all config.Foreign) {
	flags, all = Keys(false), Keys(false)
	flags.Keys = slices.Clone(snapshots)
	var shorter []config.ForeignKey
	for _, k := range snapshots {
		if name, ok := strings.CutPrefix(k.Key, "etcd-"); ok && k.To != name {
			k.Key, k.Env, k.PartEnv = name, nil, nil
			shorter = append(shorter, k)
		}
	}
	shorter = append(shorter, alias("dir", "snapshot-dir", servers))
	flags.Keys, all.Keys = append(flags.Keys, shorter...), append(all.Keys, shorter...)
	return flags, all
}

// same returns the row of a setting that has k3s' name and meaning.
func same(key string, options ...option) config.ForeignKey { return row(key, config.SameKey, options) }

// alias returns the row of a setting that umiak calls to.
func alias(key, to string, options ...option) config.ForeignKey {
	return row(key, config.OtherKey, append(options, func(k *config.ForeignKey) { k.To = to }))
}

// ignored returns the row of a key that is accepted without effect.
func ignored(key, reason string, options ...option) config.ForeignKey {
	return row(key, config.NoEffect, append(options, because(reason)))
}

// refused returns the row of a key that is a mistake.
func refused(key, reason string, options ...option) config.ForeignKey {
	return row(key, config.Refused, append(options, because(reason)))
}

func row(key string, effect config.Effect, options []option) config.ForeignKey {
	k := config.ForeignKey{Key: key, Effect: effect}
	for _, o := range options {
		o(&k)
	}
	return k
}

// option completes a row.
type option func(*config.ForeignKey)

// servers marks a setting that only servers have.
func servers(k *config.ForeignKey) { k.Servers = true }

// toggle marks a setting that is true or false, which a flag without a value turns on.
func toggle(k *config.ForeignKey) { k.Form = config.Switch }

// secret marks a value that is never shown.
func secret(k *config.ForeignKey) { k.Secret = true }

// inverted marks a switch that is the opposite of umiak's.
func inverted(k *config.ForeignKey) { k.Invert = true }

// enables lists umiak's names of settings that k3s uses only where the switch is on.
func enables(settings ...string) option { return func(k *config.ForeignKey) { k.Enables = settings } }

// short is the letter of a short flag.
func short(letter string) option { return func(k *config.ForeignKey) { k.Short = letter } }

// env lists variables besides that which is made of the key.
func env(names ...string) option { return func(k *config.ForeignKey) { k.Env = names } }

// because states why a key has no effect or is refused.
func because(reason string) option { return func(k *config.ForeignKey) { k.Reason = reason } }

// sets is the text that a switch sets where it is on.
func sets(text string) option { return func(k *config.ForeignKey) { k.Value = text } }

// aws is a variable of S3 clients, which umiak's reads as well.
func aws(name string) option {
	return func(k *config.ForeignKey) { k.PartEnv = []string{name} }
}

var cluster = []config.ForeignKey{
	same("data-dir", short("d"), env("K3S_DATA_DIR")),
	same("server", short("s"), env("K3S_URL")),
	same("token", short("t"), env("K3S_TOKEN")),
	same("token-file", env("K3S_TOKEN_FILE")),
	same("agent-token", servers, env("K3S_AGENT_TOKEN")),
	same("agent-token-file", servers, env("K3S_AGENT_TOKEN_FILE")),
	same("cluster-init", servers, toggle, env("K3S_CLUSTER_INIT")),
	same("cluster-reset", servers, toggle, env("K3S_CLUSTER_RESET")),
	same("cluster-reset-restore-path", servers),
	same("bind-address"),
	same("https-listen-port", servers),
	same("advertise-address", servers),
	same("advertise-port", servers),
	same("tls-san", servers),
	ignored("tls-san-security", "certificates never get names that nobody configured", servers, toggle),
	same("write-kubeconfig", servers, short("o"), env("K3S_KUBECONFIG_OUTPUT")),
	same("write-kubeconfig-mode", servers, env("K3S_KUBECONFIG_MODE")),
	same("write-kubeconfig-group", servers, env("K3S_KUBECONFIG_GROUP")),
	same("write-kubeconfig-name", servers),
	ignored("secrets-encryption", "Secrets are always encrypted in the datastore", servers, toggle),
	same("secrets-encryption-provider", servers),
	same("enable-pprof", toggle),
	ignored("supervisor-metrics", "metrics are served without it, see docs/metrics.md", servers, toggle),
	refused("rootless", "umiak needs root: run it in a container or a virtual machine", toggle, env("K3S_ROOTLESS")),
	ignored("prefer-bundled-bin", "no programs of the machine are used but nft", toggle),
}

var network = []config.ForeignKey{
	same("cluster-cidr", servers),
	same("service-cidr", servers),
	same("service-node-port-range", servers),
	same("cluster-dns", servers),
	same("cluster-domain", servers),
	same("flannel-backend", servers),
	ignored("flannel-ipv6-masq", "IPv6 traffic of pods is always masqueraded", servers, toggle),
	same("flannel-external-ip", servers, toggle),
	same("flannel-iface"),
	same("flannel-conf"),
	same("flannel-cni-conf", because(
		"a CNI configuration of your own goes into /etc/cni/net.d, with flannel-backend: none")),
	ignored("egress-selector-mode", "the API server finds the way to each node", servers),
	ignored("servicelb-namespace", "load balancers need no pods", servers),
	same("node-ip", short("i")),
	same("node-external-ip"),
	same("node-internal-dns"),
	same("node-external-dns"),
	same("resolv-conf", env("K3S_RESOLV_CONF")),
	same("lb-server-port", env("K3S_LB_SERVER_PORT")),
	ignored("disable-apiserver-lb", "nodes reach all servers through their balancer", toggle),
	refused("vpn-auth", vpn, secret, env("K3S_VPN_AUTH")),
	refused("vpn-auth-file", vpn, env("K3S_VPN_AUTH_FILE")),
}

const vpn = "umiak starts no VPN: run it beside umiak, and set node-ip and flannel-iface to its address and interface"

var datastore = []config.ForeignKey{
	same("datastore-endpoint", servers, env("K3S_DATASTORE_ENDPOINT")),
	same("datastore-cafile", servers, env("K3S_DATASTORE_CAFILE")),
	same("datastore-certfile", servers, env("K3S_DATASTORE_CERTFILE")),
	same("datastore-keyfile", servers, env("K3S_DATASTORE_KEYFILE")),
	same("etcd-expose-metrics", servers, toggle),
	same("etcd-arg", servers),
}

var snapshots = []config.ForeignKey{
	alias("etcd-disable-snapshots", "disable-snapshots", servers, toggle),
	alias("etcd-snapshot-schedule-cron", "snapshot-schedule-cron", servers),
	alias("etcd-snapshot-retention", "snapshot-retention", servers),
	alias("etcd-snapshot-dir", "snapshot-dir", servers),
	alias("etcd-snapshot-name", "snapshot-name", servers),
	ignored("etcd-snapshot-compress", "snapshots are always compressed", servers, toggle),
	ignored("etcd-snapshot-reconcile-interval", "the list of snapshots is read where it is needed", servers),
	alias("etcd-s3", "snapshot-s3-disable", servers, toggle, inverted,
		enables("snapshot-s3-bucket", "snapshot-s3-config-secret")),
	alias("etcd-s3-endpoint", "snapshot-s3-endpoint", servers),
	alias("etcd-s3-endpoint-ca", "snapshot-s3-endpoint-ca", servers),
	alias("etcd-s3-skip-ssl-verify", "snapshot-s3-skip-ssl-verify", servers, toggle),
	alias("etcd-s3-access-key", "snapshot-s3-access-key", servers, aws("AWS_ACCESS_KEY_ID")),
	alias("etcd-s3-secret-key", "snapshot-s3-secret-key", servers, aws("AWS_SECRET_ACCESS_KEY")),
	alias("etcd-s3-session-token", "snapshot-s3-session-token", servers, aws("AWS_SESSION_TOKEN")),
	alias("etcd-s3-bucket", "snapshot-s3-bucket", servers),
	alias("etcd-s3-bucket-lookup-type", "snapshot-s3-bucket-lookup-type", servers),
	alias("etcd-s3-region", "snapshot-s3-region", servers),
	alias("etcd-s3-folder", "snapshot-s3-folder", servers),
	alias("etcd-s3-proxy", "snapshot-s3-proxy", servers),
	alias("etcd-s3-config-secret", "snapshot-s3-config-secret", servers),
	alias("etcd-s3-insecure", "snapshot-s3-insecure", servers, toggle),
	alias("etcd-s3-timeout", "snapshot-s3-timeout", servers),
	alias("etcd-s3-retention", "snapshot-retention", servers),
}

var components = []config.ForeignKey{
	same("disable", servers),
	same("disable-agent", servers, toggle),
	same("disable-scheduler", servers, toggle),
	same("disable-network-policy", servers, toggle),
	same("disable-kube-proxy", servers, toggle),
	ignored("disable-cloud-controller", "umiak has no cloud controller", servers, toggle),
	ignored("disable-helm-controller", noHelm, servers, toggle),
	ignored("helm-controller-arg", noHelm, servers),
	ignored("helm-job-image", noHelm, servers),
	refused("disable-apiserver", everyServer, servers, toggle),
	refused("disable-controller-manager", everyServer, servers, toggle),
	refused("disable-etcd", everyServer, servers, toggle),
	same("kube-apiserver-arg", servers),
	same("kube-controller-manager-arg", servers),
	same("kube-scheduler-arg", servers),
	ignored("kube-cloud-controller-manager-arg", "umiak has no cloud controller", servers),
	alias("embedded-registry", "image-sharing", toggle),
	ignored("system-default-registry", "umiak pulls no images of its own", env("K3S_SYSTEM_DEFAULT_REGISTRY")),
	ignored("default-local-storage-path", "umiak has no local volumes yet", servers),
}

const (
	noHelm      = "umiak has no controller of Helm charts yet, and no jobs or images for it"
	everyServer = "each server runs the whole control plane: run fewer servers and more nodes that join them, or keep the " +
		"state elsewhere with datastore-endpoint"
)

var node = []config.ForeignKey{
	same("node-name", env("K3S_NODE_NAME")),
	same("with-node-id", toggle),
	same("node-label"),
	same("node-taint"),
	same("kubelet-arg"),
	same("kube-proxy-arg"),
	same("protect-kernel-defaults", toggle),
	same("selinux", toggle, env("K3S_SELINUX")),
	same("image-credential-provider-bin-dir"),
	same("image-credential-provider-config"),
}

var runtime = []config.ForeignKey{
	refused("docker", "containerd is built in: images of Docker come by `docker save` into data-dir/agent/images",
		toggle),
	same("container-runtime-endpoint"),
	refused("image-service-endpoint", "the images are those of the runtime: set container-runtime-endpoint"),
	same("default-runtime"),
	same("snapshotter"),
	same("private-registry"),
	same("disable-default-registry-endpoint", toggle),
	same("nonroot-devices", toggle),
	ignored("airgap-extra-registry", "images are imported under the names that they have"),
	ignored("pause-image", "the program of pods' sandboxes is built in"),
}

var logs = []config.ForeignKey{
	alias("debug", "log-level", toggle, sets("debug"), env("K3S_DEBUG")),
	same("v"),
	same("vmodule"),
	same("log", short("l")),
	ignored("alsologtostderr", "the log always goes to standard error", toggle),
}

var deprecated = []config.ForeignKey{
	refused("no-deploy", "set disable", servers),
	refused("no-flannel", "set flannel-backend: none", toggle),
	refused("cluster-secret", "set token", secret, env("K3S_CLUSTER_SECRET")),
	refused("disable-selinux", "it is off unless selinux is set", toggle),
	refused("kube-controller-arg", "set kube-controller-manager-arg", servers),
	refused("kube-cloud-controller-arg", "leave it out: umiak has no cloud controller", servers),
	refused("storage-backend", "set datastore-endpoint", servers, env("K3S_STORAGE_BACKEND")),
	refused("storage-endpoint", "set datastore-endpoint", servers, secret, env("K3S_STORAGE_ENDPOINT")),
	refused("storage-cafile", "set datastore-cafile", servers, env("K3S_STORAGE_CAFILE")),
	refused("storage-certfile", "set datastore-certfile", servers, env("K3S_STORAGE_CERTFILE")),
	refused("storage-keyfile", "set datastore-keyfile", servers, env("K3S_STORAGE_KEYFILE")),
}
