package server

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/testing/settingstest"
	"github.com/umiak-io/umiak/server/pki"
)

// TestWeakPasswords: a password that a person has chosen is long, except on a server that runs with a short one
// already.
func TestWeakPasswords(t *testing.T) {
	for text, ok := range map[string]bool{
		"x": false, "eleven-char": false, "twelve-chars": true, "K10" + strings.Repeat("ab", 32) + "::server:x": false,
		"um1." + strings.Repeat("ab", 32) + ".server.x": true, // as data-dir/server/token has it on a server that runs
	} {
		for _, key := range []string{"token", "agent-token"} {
			c := valid()
			c.DataDir = t.TempDir()
			if key == "token" {
				c.Token = text
			} else {
				c.AgentToken = text
			}
			err := c.Validate()
			if (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), key+": ") {
				t.Errorf("%s %q: %v", key, text, err)
			}
			if _, err := pki.Ensure(pki.Config{Dir: c.Dirs().ServerPKI()}); err != nil {
				t.Fatal(err)
			}
			if err := c.Validate(); err != nil {
				t.Errorf("%s %q on a server that was set up before: %v", key, text, err)
			}
		}
	}
}

// TestAServerSendsNoPassword: a server that joins with a password alone does not connect, whoever answers.
func TestAServerSendsNoPassword(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	came := make(chan struct{}, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
			came <- struct{}{}
		}
	}()
	c := valid()
	c.DataDir, c.RunDir, c.NodeName = t.TempDir(), t.TempDir(), "s2"
	c.Server, c.Token = "https://"+l.Addr().String(), "hunter2-hunter2"
	c.NodeIP = nodeip.At(netip.MustParseAddr("192.0.2.7"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	addrs, err := Addresses(ctx, c, log)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Join(ctx, c, addrs, log)
	if err == nil || !strings.Contains(err.Error(), "umiak token create --kind server") ||
		strings.Contains(err.Error(), c.Token) {
		t.Error(err)
	}
	select {
	case <-came:
		t.Error("it has connected")
	default:
	}
}

// valid returns settings with nothing wrong.
func valid() Config {
	var c Config
	if err := config.Parse("no settings", "", &c); err != nil {
		panic(err)
	}
	c.DataDir = "" // no server was set up there
	return c
}

// read returns the settings of a text, and what loading and Validate find wrong with them.
func read(text string) (Config, error) {
	var c Config
	err := config.Parse("config.yaml", text, &c)
	c.DataDir = "" // no server was set up there
	return c, config.Report(err, c.Validate())
}

// refused are settings that Validate or reading refuses, with the error. DIR is a folder, DIR/text a file of words.
var refused = []struct{ settings, want string }{
	{"data-dri: /x", "data-dri: no such setting; did you mean data-dir?"},
	{"datastore-endpoint: sqlite://s3cr3t", "datastore-endpoint: it does not begin with"},
	{"datastore-endpoint: mysql://u:s3cr3t@tcp(db)/k\ncluster-init: true", "cluster-init: is for etcd in this process"},
	{"datastore-endpoint: https://e:2379\ncluster-reset: true", "cluster-reset: is for etcd in this process"},
	{"datastore-cafile: /ca", "datastore-cafile: needs datastore-endpoint"},
	{"datastore-endpoint: https://e:2379\ndatastore-certfile: /c", "datastore-certfile: and datastore-keyfile"},
	{"datastore-endpoint: https://e:2379\ndatastore-cafile: /nope", "datastore-cafile: open /nope"},
	{"datastore-endpoint: https://e:2379\ndatastore-cafile: DIR/text",
		"datastore-cafile: DIR/text holds no certificate"},
	{"datastore-endpoint: https://e:2379\ndatastore-certfile: DIR/text\ndatastore-keyfile: /nope",
		"datastore-keyfile: open /nope"},
	{"datastore-endpoint: https://e:2379\ndatastore-certfile: DIR/text\ndatastore-keyfile: DIR/text",
		"datastore-certfile: tls: "},
	{"server: https://first:6443\ncluster-init: true", "cluster-init: makes a new cluster"},
	{"server: first", "server: "},
	{"cluster-reset-restore-path: /mnt/a", "cluster-reset-restore-path: needs cluster-reset: true"},
	{"etcd-arg: data-dir=/x", "etcd-arg: data-dir cannot be set: set data-dir"},
	{"etcd-expose-metrics: 2381", "etcd-expose-metrics: \"2381\" is not true or false"},
	{"advertise-port: api", "advertise-port: \"api\" is not a port, 1 to 65535"},
	{"secrets-encryption-provider: kms", "secrets-encryption-provider: \"kms\" is not secretbox, aescbc or aesgcm"},
	{"snapshot-name: ../x", "snapshot-name: \"../x\" is not a name"},
	{"snapshot-name: on-demand", "snapshot-name: \"on-demand\" is not a name"},
	{"snapshot-s3-config-secret: A b", "snapshot-s3-config-secret: \"A b\" is not the name of a Secret"},
	{"snapshot-s3-config-secret: a\nsnapshot-s3-bucket: abc", "snapshot-s3-config-secret: snapshot-s3-bucket is set as well"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-session-token: s3cr3t", "snapshot-s3-session-token: needs snapshot-s3-access-key"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-proxy: 's3cr3t@proxy:1'", "snapshot-s3-proxy: it is not a URL"},
	{"snapshot-s3-bucket-lookup-type: url", "snapshot-s3-bucket-lookup-type: \"url\" is not auto, dns or path"},
	{"snapshot-retention: 0", "snapshot-retention: 0: at least one"},
	{"snapshot-schedule-cron: often", "snapshot-schedule-cron: \"often\""},
	{"snapshot-dir: x", "snapshot-dir: \"x\" is not an absolute path"},
	{"snapshot-passphrase-file: x", "snapshot-passphrase-file: \"x\" is not an absolute path"},
	{"snapshot-passphrase-file: /nope", "snapshot-passphrase-file: "},
	{"snapshot-s3-folder: a", "snapshot-s3-bucket: it is not set"},
	{"snapshot-s3-bucket: A", "snapshot-s3-bucket: \"A\" is not a bucket name"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-endpoint: https://x", "snapshot-s3-endpoint: \"https://x\" is not HOST"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-folder: ../x", "snapshot-s3-folder: \"../x\" is not a path"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-secret-key: s3cr3t", "snapshot-s3-access-key: it is not set"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-access-key: id", "snapshot-s3-secret-key-file: it is not set"},
	{"snapshot-s3-secret-key: s3cr3t\nsnapshot-s3-secret-key-file: /k",
		"snapshot-s3-secret-key-file: snapshot-s3-secret-key is set as well"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-insecure: true\nsnapshot-s3-skip-ssl-verify: true",
		"snapshot-s3-insecure: plain HTTP"},
	{"snapshot-s3-endpoint-ca: ca", "snapshot-s3-endpoint-ca: \"ca\" is not an absolute path"},
	{"snapshot-s3-bucket: abc\nsnapshot-s3-timeout: 0s", "snapshot-s3-timeout: 0s is not more"},
	{"snapshot-s3-timeout: soon", "snapshot-s3-timeout: \"soon\" is not a duration such as 90s or 12h"},

	{"cluster-cidr: 10.42.0.0/25", "cluster-cidr: 10.42.0.0/25 has no room for a node's range, which is a /24"},
	{"cluster-cidr: fd00::/40\nservice-cidr: fd01::/112", "cluster-cidr: fd00::/40 is too large"},
	{"cluster-cidr: 10.0.0.0/8\nservice-cidr: 172.16.0.0/16\nkube-controller-manager-arg: node-cidr-mask-size=25",
		"cluster-cidr: 10.0.0.0/8 is too large"},
	{"cluster-cidr: [10.42.0.0/16, 10.44.0.0/16]", "cluster-cidr: one range, or one IPv4 and one IPv6 range"},
	{"cluster-cidr: [10.42.0.0/16, 'fd00:42::/56']", "service-cidr: must have the address families of cluster-cidr"},
	{"cluster-cidr: 10.42.0.0", "cluster-cidr: \"10.42.0.0\" is not an address range such as 10.42.0.0/16"},
	{"service-cidr: 10.43.0.0/30", "service-cidr: 10.43.0.0/30 is too small"},
	{"service-cidr: 10.42.128.0/17", "service-cidr: 10.42.128.0/17 overlaps cluster-cidr 10.42.0.0/16"},
	{"service-node-port-range: low", "service-node-port-range: \"low\" is not a range of ports such as 30000-32767"},
	{"cluster-dns: 9.9.9.9", "cluster-dns: 9.9.9.9 is outside of service-cidr"},
	{"cluster-dns: 10.43.0.1", "cluster-dns: 10.43.0.1 is taken"},
	{"cluster-domain: Cluster", "cluster-domain: \"Cluster\": "},
	{"load-balancer-pool: 192.0.2.9-192.0.2.1",
		"load-balancer-pool: \"192.0.2.9-192.0.2.1\" is not an address, a prefix"},
	{"load-balancer-pool: [192.0.2.0/24, 192.0.2.7]",
		"load-balancer-pool: \"192.0.2.7\" overlaps 192.0.2.0-192.0.2.255"},
	{"service-external-ips: router", "service-external-ips: \"router\" is not an address range"},
	{"flannel-external-ip: true\nflannel-backend: host-gw", "flannel-external-ip: flannel-backend host-gw has no tunnels"},
	{"disable-network-policy: all", "disable-network-policy: \"all\" is not true or false"},
	{"disable-kube-proxy: here", "disable-kube-proxy: \"here\" is not true or false"},
	{"flannel-backend: udp", "flannel-backend: \"udp\" is not vxlan, host-gw, wireguard-native or none"},
	{"tls-san: münchen.local", "tls-san: \"münchen.local\" is not a name for a certificate: certificates have names in ASC"},
	{"tls-san: https://x:6443", "tls-san: \"https://x:6443\" is not a name"},
	{"tls-san: a.b c.d", "tls-san: \"a.b c.d\" is not a name"},
	{"bind-address: eth0", "bind-address: \"eth0\" is not an IP address"},
	{"advertise-address: 0.0.0.0", "advertise-address: 0.0.0.0 is no address"},
	{"node-ip: '10.0'", "node-ip: \"10.0\" is not an IP address"},
	{"node-external-ip: router", "node-external-ip: \"router\" is not an IP address"},
	{"node-name: " + strings.Repeat("a", 60) + "\nwith-node-id: true", "with with-node-id, "},
	{"node-name: A_b", "node-name: \"A_b\" cannot be a node's"},
	{"https-listen-port: 70000", "https-listen-port: \"70000\" is not a port, 1 to 65535"},
	{"https-listen-port: 10250\nkubelet-port: 10250", "https-listen-port: 10250 is the port of the kubelet as well"},
	{"https-listen-port: 5001\nimage-sharing: true", "https-listen-port: 5001 is the port of image sharing as well"},
	{"https-listen-port: 6444\ndisable-kube-proxy: true", "https-listen-port: 6444 is lb-server-port as well"},
	{"lb-server-port: 6443\ndisable-kube-proxy: true\nbind-address: '::'",
		"https-listen-port: 6443 is lb-server-port as well"},
	{"disable-agent: maybe", "disable-agent: \"maybe\" is not true or false"},
	{"write-kubeconfig-group: no-such-group", "write-kubeconfig-group: \"no-such-group\" is neither"},
	{"write-kubeconfig-name: ' a'", "write-kubeconfig-name: \" a\" is not a name"},
	{"disable-scheduler: 2", "disable-scheduler: \"2\" is not true or false"},
	{"write-kubeconfig-mode: rw", "write-kubeconfig-mode: \"rw\" is not a file mode such as 0600"},

	{"token: short", "token: it has 5 characters, and a password needs"},
	{"token-file: /nope", "token-file: "},
	{"agent-token: short", "agent-token: it has 5 characters"},
	{"agent-token: twelve-chars\nagent-token-file: /f", "agent-token-file: agent-token is set as well"},
	{"audit-policy: /tmp", "audit-policy: /tmp is not a regular file"},
	{"audit-policy: DIR/text", "audit-policy: DIR/text is not an audit policy"},
	{"kube-scheduler-arg: config=/nope", "kube-scheduler-arg: config: open /nope"},
	{"kube-scheduler-arg: --config=DIR/text", "kube-scheduler-arg: config: DIR/text"},
	{"kube-apiserver-arg: audit_policy_file=/nope", "kube-apiserver-arg: audit-policy-file: open /nope"},
	{"kube-apiserver-arg: oidc-ca-file=/nope", "kube-apiserver-arg: oidc-ca-file: stat /nope"},
}

// accepted are settings that can be used. DIR/audit and DIR/scheduler are files of their kinds.
var accepted = []string{
	"tls-san: [pi.local, '*.example.com', my_host, Pi, 10.0.0.1, 'fd00::1', xn--mnchen-3ya.local]",
	"cluster-cidr: 10.0.0.0/8\nservice-cidr: 172.16.0.0/16",
	"cluster-cidr: 10.42.0.0/16,fd00:42::/56\nservice-cidr: 10.43.0.0/16,fd00:43::/112",
	"cluster-cidr: 10.42.0.0/25\nkube-controller-manager-arg: node-cidr-mask-size=27",
	"service-cidr: 10.43.0.0/29\ncluster-dns: 10.43.0.5",
	"disable: dns\ncluster-dns: 169.254.20.10",
	"audit-policy: DIR/audit\naudit-log: none",
	"kube-scheduler-arg: config=DIR/scheduler",
	"data-dir: /srv/umiak\nrun-dir: /run/other\nwrite-kubeconfig: /home/me/.kube/config\nwrite-kubeconfig-mode: 0640",
	"disable-snapshots: true\nsnapshot-s3-unencrypted: true",
	"snapshot-s3-config-secret: bucket\nsnapshot-name: nightly",
	"snapshot-s3-bucket: abc\nsnapshot-s3-proxy: http://user:s3cr3t@proxy.example:3128\nsnapshot-s3-bucket-lookup-type: path",
	"cluster-reset: true\ncluster-reset-restore-path: /mnt/usb/a",
	"etcd-arg: [quota-backend-bytes=8589934592, heartbeat-interval=200]\netcd-expose-metrics: true\ncluster-init: true",
	"advertise-address: 203.0.113.1\nadvertise-port: 443\nsecrets-encryption-provider: aescbc",
	"flannel-backend: none\nbind-address: ''",
	"snapshot-s3-bucket: abc\nsnapshot-s3-disable: true",
	"https-listen-port: 6444",
	"https-listen-port: 6444\ndisable-kube-proxy: true\ndisable-agent: true",
	"https-listen-port: 6444\ndisable-kube-proxy: true\nbind-address: 192.0.2.1",
	"write-kubeconfig-group: root\nwrite-kubeconfig-name: home lab",
	"write-kubeconfig-group: 1000\ndisable-scheduler: true\nkube-scheduler-arg: bind-address=0.0.0.0",
	"snapshot-s3-bucket: abc\nsnapshot-s3-region: eu-west-1\nsnapshot-s3-access-key: id\nsnapshot-s3-secret-key: s3cr3t",
}

// TestValidate: check and install.sh ask Validate before a server is stopped for its settings.
func TestValidate(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"text": "no such thing\n", "audit": "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]\n",
		"scheduler": "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(text string) string { return strings.ReplaceAll(text, "DIR", dir) }
	for _, c := range refused {
		if _, err := read(in(c.settings)); err == nil || !strings.Contains(err.Error(), in(c.want)) ||
			strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s\nwant %s\ngot  %v", c.settings, c.want, err)
		}
	}
	for _, settings := range accepted {
		if _, err := read(in(settings)); err != nil {
			t.Errorf("%s\n%v", settings, err)
		}
	}
}

// TestEverySettingIsTestedByValidate fails for a setting that neither refused nor accepted names.
func TestEverySettingIsTestedByValidate(t *testing.T) {
	texts := slices.Clone(accepted)
	for _, c := range refused {
		texts = append(texts, c.settings)
	}
	settingstest.EveryKeyIsSet(t, &Config{}, texts)
}

// TestMistakesAreReportedAtOnceInAFixedOrder also covers commands that validate the settings of another machine.
func TestMistakesAreReportedAtOnceInAFixedOrder(t *testing.T) {
	const text = "cluster-cidr: nonsense\naudit-policy: /nope\ntls-san: a b\nload-balancer-pool: x\ncluster-dns: 9.9.9.9\nflannel-backend: udp\nagent-token: short\ntoken: short\n"
	c, err := read(text)
	if err == nil || strings.Count(err.Error(), "\n") != 7 {
		t.Fatal(err)
	}
	settingstest.SameMistakes(t, err, text, func(text string) error {
		_, err := read(text)
		return err
	})
	if err := c.ValidateValues(); strings.Contains(err.Error(), "/nope") {
		t.Error(err)
	}
}

func TestStartWithoutAFileThatOnlySnapshotsNeed(t *testing.T) {
	c := valid()
	c.Snapshots.PassphraseFile = "/not/mounted/yet"
	if err := c.ValidateStart(); err != nil {
		t.Error(err)
	}
}

// TestPartsOfNodesThatAreOff: nodes learn what the servers' settings turn off, and all servers must have it alike; a
// server of an earlier release, which does not know these settings, differs only where they are set.
func TestPartsOfNodesThatAreOff(t *testing.T) {
	keys := []string{"disable-network-policy", "disable-kube-proxy", "flannel-external-ip"}
	c := valid()
	has := func() (out []string) {
		for _, s := range c.shared() {
			if slices.Contains(keys, s.Key) && s.Value == "true" {
				out = append(out, s.Key)
			}
		}
		return out
	}
	if f := c.facts(); len(has()) > 0 || f.NetworkPolicyOff || f.KubeProxyOff || f.FlannelExternalIP {
		t.Errorf("by default: %q, %+v", has(), f)
	}
	c.DisableNetworkPolicy, c.DisableKubeProxy, c.FlannelExternalIP = true, true, true
	if f := c.facts(); !slices.Equal(has(), keys) || !f.NetworkPolicyOff || !f.KubeProxyOff || !f.FlannelExternalIP {
		t.Errorf("set: %q, %+v", has(), f)
	}
	if !c.dnsEndpoints() {
		t.Error("the DNS Service has no endpoints for another proxy")
	}
	if c.Disable = []Component{"dns"}; c.dnsEndpoints() {
		t.Error("another DNS gets the nodes as endpoints")
	}
}
