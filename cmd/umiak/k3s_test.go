package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/server"
)

// start loads and validates settings as `umiak server` or `umiak agent` does.
func start(t *testing.T, node bool, text string, args ...string) (server.Config, config.Settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var sc server.Config
	var ac agent.Config
	var lc logging.Config
	dst := []any{&sc, &ac, &lc, k3s.Keys(node)}
	if node {
		dst = dst[1:]
	}
	var s config.Settings
	var err error
	cmd := &cli.Command{Name: "run", Flags: config.Flags(dst...), Action: func(c *cli.Context) error {
		s, err = config.Load(c, dst...)
		errs := []error{err, ac.ValidateValues(), lc.Validate()}
		if !node {
			errs = append(errs, sc.ValidateStart())
		}
		err = config.Report(errs...)
		return nil
	}}
	app := &cli.App{Commands: []*cli.Command{cmd}}
	if e := app.Run(append([]string{"umiak", "run", "--config", path}, args...)); e != nil {
		t.Fatalf("%s: %v", text, e)
	}
	return sc, s, err
}

// lacks reports whether a mistake is that of a setting which umiak is still to get.
func lacks(mistake string) bool {
	return strings.Contains(mistake, "umiak does not have this setting yet")
}

// mistakesOf returns the mistakes but for those of settings which umiak is still to get.
func mistakesOf(t *testing.T, err error) (out []string) {
	t.Helper()
	if err == nil {
		return nil
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if lacks(line) {
			t.Log(line)
			continue
		}
		out = append(out, line)
	}
	return out
}

// TestFilesOfK3s starts with each file in testdata/k3s, whose comments have what a start must say, and nothing else.
func TestFilesOfK3s(t *testing.T) {
	files, err := filepath.Glob("testdata/k3s/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, s, err := start(t, strings.Contains(text, "# program: agent\n"), text)
			mistakes, unused := mistakesOf(t, err), slices.Clone(s.Unused)
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				if want, ok := strings.CutPrefix(line, "# mistake: "); ok {
					mistakes = without(t, mistakes, want)
				}
				if text, ok := strings.CutPrefix(line, "# pending: "); ok { // until umiak accepts it
					mistakes = slices.DeleteFunc(mistakes, func(m string) bool { return strings.Contains(m, text) })
				}
				if key, ok := strings.CutPrefix(line, "# without effect: "); ok {
					unused = without(t, unused, ": "+key+" has no effect: ")
				}
			}
			for _, text := range slices.Concat(mistakes, unused) {
				t.Errorf("unexpected: %s", text)
			}
			if strings.Contains(strings.Join(mistakes, ""), "hidden-key") {
				t.Error("a secret is in a message")
			}
		})
	}
}

// without removes the text that contains want, which must be there.
func without(t *testing.T, list []string, want string) []string {
	t.Helper()
	i := slices.IndexFunc(list, func(s string) bool { return strings.Contains(s, want) })
	if i < 0 {
		t.Errorf("missing: %s in\n%s", want, strings.Join(list, "\n"))
		return list
	}
	return slices.Delete(list, i, i+1)
}

// TestEveryKeyOfK3s sets each key to a value that k3s accepts, and compares what becomes of it: "same" for a setting of
// this name, the name of another setting, "ignored", or "refused". A key of the table without a row here is a failure.
func TestEveryKeyOfK3s(t *testing.T) {
	cases := map[string][2]string{ // value, outcome
		"advertise-address": {"192.0.2.1", "same"}, "advertise-port": {"6443", "same"},
		"agent-token": {"a-long-enough-password", "same"}, "agent-token-file": {"/dev/null", "same"},
		"airgap-extra-registry": {"registry.example.net", "ignored"}, "alsologtostderr": {"true", "ignored"},
		"bind-address": {"0.0.0.0", "same"}, "cluster-cidr": {"10.42.0.0/16", "same"},
		"cluster-dns": {"10.43.0.10", "same"}, "cluster-domain": {"cluster.local", "same"},
		"cluster-init": {"true", "same"}, "cluster-reset": {"true", "same"},
		"cluster-reset-restore-path": {"/srv/snapshot", "same"}, "cluster-secret": {"x", "refused"},
		"container-runtime-endpoint": {"unix:///run/x.sock", "same"}, "data-dir": {"/srv/umiak", "same"},
		"datastore-cafile": {"/srv/ca.pem", "same"}, "datastore-certfile": {"/srv/cert.pem", "same"},
		"datastore-endpoint": {"postgres://u:p@192.0.2.1/k", "same"}, "datastore-keyfile": {"/srv/key.pem", "same"},
		"debug": {"true", "log-level"}, "default-local-storage-path": {"/srv/volumes", "ignored"},
		"default-runtime": {"runc", "same"}, "disable": {"traefik", "same"}, "disable-agent": {"true", "same"},
		"disable-apiserver": {"true", "refused"}, "disable-apiserver-lb": {"true", "ignored"},
		"disable-cloud-controller": {"true", "ignored"}, "disable-controller-manager": {"true", "refused"},
		"disable-default-registry-endpoint": {"true", "same"}, "disable-etcd": {"true", "refused"},
		"disable-helm-controller": {"true", "ignored"}, "disable-kube-proxy": {"true", "same"},
		"disable-network-policy": {"true", "same"}, "disable-scheduler": {"true", "same"},
		"disable-selinux": {"true", "refused"}, "docker": {"true", "refused"},
		"egress-selector-mode": {"pod", "ignored"}, "embedded-registry": {"true", "image-sharing"},
		"enable-pprof": {"true", "same"}, "etcd-arg": {"quota-backend-bytes=1", "same"},
		"etcd-disable-snapshots": {"true", "disable-snapshots"}, "etcd-expose-metrics": {"true", "same"},
		"etcd-s3": {"true", "snapshot-s3-disable"}, "etcd-s3-access-key": {"x", "snapshot-s3-access-key"},
		"etcd-s3-bucket":             {"bucket", "ignored"},
		"etcd-s3-bucket-lookup-type": {"path", "snapshot-s3-bucket-lookup-type"},
		"etcd-s3-config-secret":      {"x", "ignored"},
		"etcd-s3-endpoint":           {"s3.example.net", "snapshot-s3-endpoint"},
		"etcd-s3-endpoint-ca":        {"/srv/ca.pem", "snapshot-s3-endpoint-ca"},
		"etcd-s3-folder":             {"x", "snapshot-s3-folder"}, "etcd-s3-insecure": {"true", "snapshot-s3-insecure"},
		"etcd-s3-proxy": {"http://proxy", "snapshot-s3-proxy"}, "etcd-s3-region": {"x", "snapshot-s3-region"},
		"etcd-s3-retention": {"3", "snapshot-retention"}, "etcd-s3-secret-key": {"x", "snapshot-s3-secret-key"},
		"etcd-s3-session-token":   {"x", "snapshot-s3-session-token"},
		"etcd-s3-skip-ssl-verify": {"true", "snapshot-s3-skip-ssl-verify"},
		"etcd-s3-timeout":         {"5m0s", "snapshot-s3-timeout"}, "etcd-snapshot-compress": {"true", "ignored"},
		"etcd-snapshot-dir": {"/srv/snapshots", "snapshot-dir"}, "etcd-snapshot-name": {"mine", "snapshot-name"},
		"etcd-snapshot-reconcile-interval": {"10m", "ignored"}, "etcd-snapshot-retention": {"3", "snapshot-retention"},
		"etcd-snapshot-schedule-cron": {"'0 */6 * * *'", "snapshot-schedule-cron"},
		"flannel-backend":             {"vxlan", "same"}, "flannel-cni-conf": {"/srv/cni.conf", "same"},
		"flannel-conf": {"/srv/flannel.json", "same"}, "flannel-external-ip": {"true", "same"},
		"flannel-iface": {"eth0", "same"}, "flannel-ipv6-masq": {"true", "ignored"},
		"helm-controller-arg": {"x", "ignored"}, "helm-job-image": {"x", "ignored"},
		"https-listen-port": {"6443", "same"}, "image-credential-provider-bin-dir": {"/srv/bin", "same"},
		"image-credential-provider-config": {"/srv/config.yaml", "same"},
		"image-service-endpoint":           {"unix:///run/x.sock", "refused"},
		"kube-apiserver-arg":               {"audit-log-maxage=1", "same"}, "kube-cloud-controller-arg": {"v=1", "refused"},
		"kube-cloud-controller-manager-arg": {"v=1", "ignored"}, "kube-controller-arg": {"v=1", "refused"},
		"kube-controller-manager-arg": {"node-monitor-period=5s", "same"},
		"kube-proxy-arg":              {"metrics-bind-address=0.0.0.0", "same"}, "kube-scheduler-arg": {"v=1", "same"},
		"kubelet-arg": {"max-pods=200", "same"}, "lb-server-port": {"6444", "same"}, "log": {"/srv/log", "same"},
		"no-deploy": {"traefik", "refused"}, "no-flannel": {"true", "refused"},
		"node-external-dns": {"a.example.net", "same"}, "node-external-ip": {"198.51.100.1", "same"},
		"node-internal-dns": {"a.lan", "same"}, "node-ip": {"192.0.2.1", "same"}, "node-label": {"a=b", "same"},
		"node-name": {"a", "same"}, "node-taint": {"'a=b:NoSchedule'", "same"}, "nonroot-devices": {"true", "same"},
		"pause-image": {"x", "ignored"}, "prefer-bundled-bin": {"true", "ignored"},
		"private-registry": {"/srv/registries.yaml", "same"}, "protect-kernel-defaults": {"true", "same"},
		"resolv-conf": {"/etc/resolv.conf", "same"}, "rootless": {"true", "refused"},
		"secrets-encryption": {"true", "ignored"}, "secrets-encryption-provider": {"secretbox", "same"},
		"selinux": {"true", "same"}, "server": {"https://192.0.2.1:6443", "same"},
		"service-cidr": {"10.43.0.0/16", "same"}, "service-node-port-range": {"30000-32767", "same"},
		"servicelb-namespace": {"x", "ignored"}, "snapshotter": {"overlayfs", "same"},
		"storage-backend": {"x", "refused"}, "storage-cafile": {"x", "refused"}, "storage-certfile": {"x", "refused"},
		"storage-endpoint": {"x", "refused"}, "storage-keyfile": {"x", "refused"},
		"supervisor-metrics": {"true", "ignored"}, "system-default-registry": {"x", "ignored"},
		"tls-san": {"a.example.net", "same"}, "tls-san-security": {"true", "ignored"},
		"token": {"a-long-enough-password", "same"}, "token-file": {"/srv/token", "same"}, "v": {"4", "same"},
		"vmodule": {"a=1", "same"}, "vpn-auth": {"x", "refused"}, "vpn-auth-file": {"x", "refused"},
		"with-node-id": {"true", "same"}, "write-kubeconfig": {"/srv/kubeconfig", "same"},
		"write-kubeconfig-group": {"users", "same"}, "write-kubeconfig-mode": {"'0644'", "same"},
		"write-kubeconfig-name": {"home", "same"},
	}
	for _, k := range k3s.Keys(false).Keys {
		c, ok := cases[k.Key]
		if !ok {
			t.Errorf("%s: no row here sets it", k.Key)
			continue
		}
		delete(cases, k.Key)
		value := strings.Trim(c[0], "'")
		for source, got := range map[string]func() (config.Settings, error){
			"YAML": func() (config.Settings, error) { return loadOnly(t, k.Key+": "+c[0]+"\n") },
			"flag": func() (config.Settings, error) { return loadOnly(t, "", "--"+k.Key+"="+value) },
		} {
			s, err := got()
			if out := outcome(k, s, err); out != c[1] && out != "" {
				t.Errorf("%s in %s: %s, want %s (%v)", k.Key, source, out, c[1], err)
			}
		}
	}
	for key := range cases {
		t.Errorf("%s is not in the table", key)
	}
}

// loadOnly loads settings of a server without validating them.
func loadOnly(t *testing.T, text string, args ...string) (s config.Settings, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dst := []any{&server.Config{}, &agent.Config{}, &logging.Config{}, k3s.Keys(false)}
	action := func(c *cli.Context) error {
		s, err = config.Load(c, dst...)
		return nil
	}
	app := &cli.App{Commands: []*cli.Command{{Name: "run", Flags: config.Flags(dst...), Action: action}}}
	if e := app.Run(append([]string{"umiak", "run", "--config", path}, args...)); e != nil {
		t.Fatalf("%s %v: %v", text, args, e)
	}
	return s, err
}

// outcome describes what has become of a key that was set alone; empty for a setting that umiak is still to get.
func outcome(k config.ForeignKey, s config.Settings, err error) string {
	switch {
	case err != nil && lacks(err.Error()):
		return ""
	case err != nil && k.Effect == config.Refused && strings.Contains(err.Error(), k.Reason):
		return "refused"
	case err != nil:
		return err.Error()
	case len(s.Unused) > 0:
		return "ignored"
	}
	for _, v := range s.Values() {
		switch {
		case v.From == "":
		case v.Key == k.Key:
			return "same"
		default:
			return v.Key
		}
	}
	return "nothing"
}

// TestNamesInDisable: k3s' names of components are accepted, its DNS is ours, and others are named with the nearest.
func TestNamesInDisable(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "server", "manifests", "apps"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server", "manifests", "apps", "shop.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sc, _, err := start(t, false, "data-dir: "+dir+"\n"+
		"disable: [coredns, servicelb, local-storage, metrics-server, traefik, shop, upgrades, servicelbb, "+
		"nothing-like-it]\n")
	if err != nil {
		t.Fatal(err)
	}
	if !sc.Disables("dns") || !sc.Disables("servicelb") || !sc.Disables("traefik") {
		t.Errorf("%q", sc.Disable)
	}
	got := sc.PassedOver()
	if len(got) != 2 || !strings.Contains(got[0], "disable: servicelbb is neither") ||
		!strings.HasSuffix(got[0], "did you mean servicelb?") || !strings.Contains(got[1], "nothing-like-it") {
		t.Errorf("%q", got)
	}
}
