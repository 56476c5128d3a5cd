package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/testing/settingstest"
)

// read returns the settings of a text, and what loading and Validate find wrong with them.
func read(text string) (Config, error) {
	var c Config
	err := config.Parse("config.yaml", "node-name: n1\n"+text, &c)
	return c, config.Report(err, c.Validate())
}

// refused are settings that Validate or reading refuses, with the error.
var refused = []struct{ settings, want string }{
	{"node-ip: [10.0.0.1, 10.0.0.2]", "node-ip: 10.0.0.1 and 10.0.0.2 are of the same family"},
	{"node-ip: 127.0.0.1", "node-ip: 127.0.0.1 is this machine's own"},
	{"node-ip: 0.0.0.0", "node-ip: 0.0.0.0 stands for any address"},
	{"node-ip: [10.0.0.1, '::1']", "node-ip: ::1 is this machine's own"},
	{"node-ip: 224.0.0.1", "node-ip: 224.0.0.1 is a multicast address"},
	{"node-ip: 'fe80::1'", "node-ip: fe80::1 is a link-local address"},
	{"node-ip: 'fd00::1%eth0'", `node-ip: "fd00::1%eth0" is not an IP address`},
	{"node-ip: 10.0.0", `node-ip: "10.0.0" is not an IP address, nor the name of an interface`},
	{"node-external-ip: router", `node-external-ip: "router" is not an IP address`},
	{"node-external-ip: 'fd00::1%eth0'", `node-external-ip: "fd00::1%eth0" is not an IP address`},
	{"lb-server-port: 10250", "lb-server-port: 10250 is kubelet-port as well"},
	{"lb-server-port: 0", `lb-server-port: "0" is not a port, 1 to 65535`},
	{"kubelet-port: 5001\nimage-sharing: true", "kubelet-port: 5001 is the port of image-sharing"},
	{"kubelet-port: kubelet", `kubelet-port: "kubelet" is not a port, 1 to 65535`},
	{"kubelet-port-from: lan", `kubelet-port-from: "lan" is not a range as 192.168.1.0/24`},
	{"kubelet-arg: [image-credential-provider-config=/nope, image-credential-provider-bin-dir=/nope]",
		"image-credential-provider-config: stat /nope"},
	{"kubelet-arg: no-such-flag=1", "kubelet-arg: "},
	{"node-internal-dns: n1", `node-internal-dns: "n1" has no domain`},
	{"node-external-dns: N_1.example.com", `node-external-dns: "N_1.example.com": `},
	{"flannel-cni-conf: /nope", "flannel-cni-conf: open /nope"},
	{"flannel-conf: /nope", "flannel-conf: open /nope"},
	{"kube-proxy-arg: nodeport-addreses=10.0.0.0/8", "kube-proxy-arg: there is no flag \"nodeport-addreses\"; did you mean nodeport-addresses?"},
	{"kube-proxy-arg: nodeport-addresses=eth0", "kube-proxy-arg: nodeport-addresses: \"eth0\" is not a range"},
	{"kube-proxy-arg: metrics-bind-address=all", "kube-proxy-arg: metrics-bind-address: \"all\" is not ADDRESS:PORT"},
	{"node-label: bad", "node-label: "},
	{"node-taint: bad", "node-taint: "},
	{"data-dir: here", `data-dir: "here" is not an absolute path`},
	{"run-dir: /var/lib/umiak", "run-dir: must not be the data-dir"},
	{"run-dir: /" + strings.Repeat("x", 64), "is too long for the sockets below it, 64 bytes at most"},
	{"cgroup-root: pods", `cgroup-root: "pods" is not an absolute path`},
	{"snapshotter: zfs", `snapshotter: "zfs" is not overlayfs or native`},
	{"shutdown-grace-period: soon", `shutdown-grace-period: "soon" is not a duration such as 90s or 12h`},
	{"shutdown-grace-period: 1s", "shutdown-grace-period: 1s is too short: 2s is the least, or 0s to stop no pods in order"},
	{"image-import-parallel: -1", "image-import-parallel: -1 is not a number of archives"},
	{"token: a\ntoken-file: /f", "token-file: token is set as well; set one of them"},
	{"image-credential-provider-config: /nope\nimage-credential-provider-bin-dir: /nope",
		"image-credential-provider-config: stat /nope"},
	{"image-credential-provider-bin-dir: /tmp",
		"image-credential-provider-bin-dir: needs image-credential-provider-config"},
	{"container-runtime-endpoint: tcp://127.0.0.1:1",
		`container-runtime-endpoint: "tcp://127.0.0.1:1" is not the path`},
	{"default-runtime: gvisor", `default-runtime: "gvisor" is not runc, crun, youki or nvidia`},
	{"with-node-id: 8", `with-node-id: "8" is not true or false`},
	{"bind-address: eth0", `bind-address: "eth0" is not an IP address`},
	{"pod-source-check: maybe", `pod-source-check: "maybe" is not true or false`},
}

// accepted are settings that can be used.
var accepted = []string{
	"node-ip: eth0",
	"node-ip: [10.0.0.1, 'fd00::1']\nnode-external-ip: 203.0.113.1",
	"kubelet-port-from: [192.168.1.7/24, 10.0.0.1, '::/0']",
	"shutdown-grace-period: 0s\nimage-import-parallel: 0",
	"server: https://10.0.0.1:6443\nnode-label: a=b\nnode-taint: a=b:NoSchedule",
	"kubelet-config-dir: /etc/other\nresolv-conf: /etc/resolv.conf\nprivate-registry: /etc/registries.yaml\nflannel-iface: eth1",
	"with-node-id: true\nprotect-kernel-defaults: true\nbind-address: 192.0.2.1",
	"container-runtime-endpoint: unix:///run/crio/crio.sock\nenable-pprof: true",
	"default-runtime: crun\nselinux: true\nnonroot-devices: true",
	"node-internal-dns: n1.lan.example.com\nnode-external-dns: [n1.example.com, home.example.org]",
	"kube-proxy-arg: [proxy-mode=ipvs, metrics-bind-address=0.0.0.0, nodeport-addresses=primary]",
	"upgrade-sources: https://example.com/umiak\ndisable-default-registry-endpoint: true",
}

// TestValidate: check and install.sh ask Validate before a node is stopped for its settings.
func TestValidate(t *testing.T) {
	for _, c := range refused {
		if _, err := read(c.settings); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\nwant %s\ngot  %v", c.settings, c.want, err)
		}
	}
	for _, settings := range accepted {
		if _, err := read(settings); err != nil {
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
	settingstest.EveryKeyIsSet(t, &Config{}, texts, "node-name")
}

// TestMistakesAreReportedAtOnceInAFixedOrder also covers commands that validate the settings of another machine.
func TestMistakesAreReportedAtOnceInAFixedOrder(t *testing.T) {
	const text = "node-ip: 127.0.0.1\nlb-server-port: 10250\ndata-dir: x\ncgroup-root: y\n" +
		"kubelet-arg: [image-credential-provider-config=/nope, image-credential-provider-bin-dir=/nope]\n"
	c, err := read(text)
	if err == nil || strings.Count(err.Error(), "\n") != 5 {
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

// TestVerbosityOfKubeletArgs: the kubelet logs with the process, so its flags set the log's verbosity.
func TestVerbosityOfKubeletArgs(t *testing.T) {
	c, err := read("kubelet-arg: [--v=2, max-pods=10, 'vmodule=reflector=6,kubelet*=4', v=1]")
	if err != nil {
		t.Fatal(err)
	}
	if v := c.Verbosity(); v.Level != 2 || !slices.Equal(v.Modules, []string{"reflector=6", "kubelet*=4"}) {
		t.Errorf("%+v", v)
	}
	if c, err := read("kubelet-arg: v=loud"); err == nil || c.Verbosity().Level != 0 {
		t.Errorf("%+v, %v", c.Verbosity(), err)
	}
}
