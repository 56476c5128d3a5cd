package k3s

// Place is a path, a name or a command of k3s, and what takes its place.
type Place struct{ K3s, Umiak string }

// Paths are the files and folders that scripts and manifests for k3s use.
func Paths() []Place {
	return []Place{
		{"/etc/rancher/k3s/config.yaml, config.yaml.d/", "/etc/umiak/config.yaml, config.yaml.d/. `--config FILE`, `K3S_CONFIG_FILE` or `UMIAK_CONFIG` reads k3s' files where they are"},
		{"/etc/rancher/k3s/registries.yaml", "/etc/umiak/registries.yaml, the same form; `private-registry` reads it where it is, see [images](images.md)"},
		{"/etc/rancher/k3s/k3s.yaml", "data-dir/server/admin.kubeconfig; `write-kubeconfig: /etc/rancher/k3s/k3s.yaml` writes it there as well, which `umiak config from-k3s` sets"},
		{"/etc/systemd/system/k3s.service, k3s.service.env", "the unit `umiak`, variables in /etc/umiak/umiak.env; `umiak config from-k3s` reads k3s' unit"},
		{"/var/lib/rancher/k3s (data-dir)", "/var/lib/umiak. A folder of k3s is never taken over: start with an empty one, and move the objects with `kubectl get -o yaml`"},
		{"server/node-token, server/token", "data-dir/server/token; `umiak token create` makes tokens that expire, see [joining](join.md#tokens)"},
		{"server/manifests", "data-dir/server/manifests, see [manifests](manifests.md)"},
		{"server/static", "no replacement: serve files from a pod"},
		{"server/db/snapshots", "data-dir/server/snapshots, or `snapshot-dir`. Snapshots of k3s cannot be restored here"},
		{"server/tls", "data-dir/server/pki, see [certificates](certificates.md)"},
		{"agent/images", "data-dir/agent/images, see [images](images.md)"},
		{"agent/etc/containerd/config.toml.tmpl", "no replacement: containerd's configuration is made from the settings"},
		{"agent/pod-manifests", "no replacement: put the manifest into server/manifests"},
		{"agent/etc/kubelet.conf.d", "/etc/umiak/kubelet.d, or `kubelet-config-dir`"},
		{"/run/k3s/containerd/containerd.sock", "/run/umiak/containerd/containerd.sock; `umiak crictl` and `umiak ctr` need no address"},
		{"/var/lib/kubelet, /var/log/pods, /etc/cni/net.d, /opt/cni/bin", "the same, see [configuration](configuration.md#what-the-worlds-manifests-expect)"},
	}
}

// Names are labels, annotations and kinds of objects that manifests for k3s use.
func Names() []Place {
	return []Place{
		{"label svccontroller.k3s.cattle.io/enablelb, lbpool", "no replacement: a load balancer's address is on every node, or `load-balancer-pool`, see [load balancers](load-balancer.md)"},
		{"label node.kubernetes.io/instance-type=k3s", "not set by umiak; `node-label: node.kubernetes.io/instance-type=NAME` sets one of your choice"},
		{"label node-role.kubernetes.io/master", "node-role.kubernetes.io/control-plane, which k3s sets as well"},
		{"kind HelmChart, HelmChartConfig", "no replacement yet: `helm template` into server/manifests, or Helm itself"},
		{"kind Addon", "`umiak status` shows what became of each manifest"},
		{"kind ETCDSnapshotFile", "`umiak snapshot list -o json`"},
		{"kind Plan of upgrade.cattle.io", "`umiak upgrade cluster --version V`, see [upgrading a cluster](upgrade.md)"},
		{"storage class local-path", "no replacement yet: install local-path-provisioner, which needs nothing of the node"},
		{"ingress class traefik", "no replacement yet: install an ingress controller"},
		{"Deployment metrics-server, coredns", "the cluster's DNS is in the node (`dns` in `disable`); metrics-server is installed as anywhere"},
	}
}

// Commands are the commands of k3s.
func Commands() []Place {
	return []Place{
		{"k3s server, k3s agent", "`umiak server`; `umiak-agent` or `umiak agent`, with the same flags"},
		{"k3s kubectl, crictl, ctr", "`umiak kubectl`, `umiak crictl`, `umiak ctr`; [install.sh](install.md) makes links of these names"},
		{"k3s token create, generate, list, rotate, delete", "`umiak token`, the same; `revoke` is the other name of `delete`"},
		{"k3s etcd-snapshot save, ls, prune, delete", "`umiak snapshot` (or `etcd-snapshot`), the same"},
		{"k3s server --cluster-reset --cluster-reset-restore-path=FILE", "`umiak snapshot restore FILE`, see [backup](backup.md)"},
		{"k3s secrets-encrypt status, rotate-keys", "`umiak secrets-encrypt`, the same; `prepare`, `rotate` and `reencrypt` are one step, `rotate`; always enabled"},
		{"k3s certificate check, rotate, rotate-ca", "`umiak certificate`, the same"},
		{"k3s check-config", "`umiak check`, or `check-config`"},
		{"k3s-killall.sh, k3s-uninstall.sh", "`umiak cleanup` (or `kill-all`) once the service is stopped, `umiak uninstall`"},
	}
}
