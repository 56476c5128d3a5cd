package k3sconvert

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
)

// settings are some of umiak's.
type settings struct {
	Server   string           `key:"server" usage:"URL"`
	Token    string           `key:"token" secret:"true" usage:"token"`
	Disable  []string         `key:"disable" usage:"names"`
	SAN      []string         `key:"tls-san" usage:"names"`
	Level    string           `key:"log-level" default:"info" values:"debug,info" usage:"level"`
	Snap     string           `key:"snapshotter" default:"overlayfs" values:"overlayfs,native" usage:"snapshotter"`
	Bucket   string           `key:"snapshot-s3-bucket" usage:"bucket"`
	NoS3     bool             `key:"snapshot-s3-disable" usage:"off"`
	Secret   string           `key:"snapshot-s3-secret-key" secret:"true" usage:"key"`
	Init     bool             `key:"cluster-init" usage:"etcd"`
	Mode     config.FileMode  `key:"write-kubeconfig-mode" default:"0600" usage:"mode"`
	File     string           `key:"write-kubeconfig" usage:"file"`
	Kubelet  []string         `key:"kubelet-arg" usage:"flags"`
	Name     string           `key:"node-name" usage:"name"`
	Labels   []string         `key:"node-label" usage:"labels"`
	NodePort config.PortRange `key:"service-node-port-range" default:"30000-32767" usage:"ports"`
}

// target accepts no kubelet-arg that begins with "bad", and needs a name.
func target() Target {
	var s settings
	read := func(text string) error {
		s = settings{}
		return config.Parse("settings", text, &s, k3s.Keys(false))
	}
	return Target{Settings: config.Describe(&s), Read: read, Validate: func(text string) error {
		errs := []error{read(text)}
		for _, a := range s.Kubelet {
			if strings.HasPrefix(a, "bad") {
				errs = append(errs, errors.New("kubelet-arg: there is no flag \"bad\""))
			}
		}
		if s.Name == "" {
			errs = append(errs, errors.New("node-name: one is needed"))
		}
		return errors.Join(errs...)
	}}
}

func TestTranslate(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("config.yaml", `
data-dir: /srv/k3s
disable: traefik, coredns
tls-san: [a.example.net]
debug: true
docker: true
vpn-auth: name=tailscale,joinKey=hidden-key
secrets-encryption: true
snapshotter: stargz
etcd-s3-bucket: backups
etcd-s3-secret-key: shown-key
kubelet-arg: ["max-pods=50", "bad=1", "eviction-hard=memory.available<100Mi,nodefs.available<10%"]
unheard-of: 1
selinux: true
node-label:
`)
	write("config.yaml.d/10.yaml", "tls-san+: [b.example.net]\nwrite-kubeconfig-mode: \"0644\"\n")
	var in Input
	if err := in.ReadFolder(dir); err != nil {
		t.Fatal(err)
	}
	got := Translate(in, target())
	want := `# This file holds secrets: chmod 600.
# To be mended: node-name: one is needed
# data-dir: /srv/k3s # left out: it holds k3s' cluster; umiak keeps its own in /var/lib/umiak
# coredns of k3s is dns
disable:
    - traefik
    - dns
tls-san:
    - a.example.net
    - b.example.net
# debug of k3s
log-level: debug
# docker: true # left out: containerd is built in: images of Docker come by ` + "`docker save`" + ` into data-dir/agent/images
# vpn-auth: (secret) # left out: umiak starts no VPN: run it beside umiak, and set node-ip and flannel-iface to its address and interface
# secrets-encryption: true # left out: Secrets are always encrypted in the datastore
# snapshotter: stargz # left out: "stargz" is not overlayfs or native
# etcd-s3-bucket of k3s
snapshot-s3-bucket: backups
# etcd-s3-secret-key of k3s
snapshot-s3-secret-key: shown-key
# left out: bad=1: there is no flag "bad"
kubelet-arg:
    - max-pods=50
    - eviction-hard=memory.available<100Mi,nodefs.available<10%
# unheard-of: 1 # left out: neither k3s nor umiak has this setting
# selinux: true # left out: umiak does not have this setting yet
# node-label:  # left out: it has no value
write-kubeconfig-mode: "0644"
# k3s writes it there without a setting
write-kubeconfig: /etc/rancher/k3s/k3s.yaml
# k3s uses the bucket only with etcd-s3: true
snapshot-s3-disable: true
`
	_, body, _ := strings.Cut(got, "\n")
	if body != want {
		t.Errorf("got\n%s\nwant\n%s", body, want)
	}
	if !strings.HasPrefix(got,
		"# Settings for umiak, translated by `umiak config from-k3s` from: "+dir+"/config.yaml, ") {
		t.Error(got)
	}
	if err := config.Parse("out", got, &settings{}); err != nil {
		t.Errorf("the output cannot be read: %v", err)
	}
}

func TestUnit(t *testing.T) {
	dir := t.TempDir()
	config, env := filepath.Join(dir, "k3s.yaml"), filepath.Join(dir, "k3s.env")
	unit := filepath.Join(dir, "k3s.service")
	for path, text := range map[string]string{
		config: "tls-san: [of.the.file]\nnode-name: of-the-file\n",
		env:    "# a comment\nK3S_TOKEN='it is secret'\nK3S_URL=https://192.0.2.1:6443\nHTTP_PROXY=http://proxy\n",
		unit: `[Unit]
Description=k3s
[Service]
EnvironmentFile=-/does/not/exist
EnvironmentFile=-` + env + `
Environment="K3S_NODE_NAME=of the unit" K3S_DEBUG=true
ExecStart=
ExecStart=/usr/local/bin/k3s \
    agent \
	'--config' '` + config + `' \
	'--node-label' 'a=b' --node-label=c=d \
	"--kubelet-arg=eviction-hard=memory.available<1Mi,nodefs.available<1%" --cluster-init -d /srv/k3s
`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var in Input
	if err := in.ReadUnit(unit); err != nil {
		t.Fatal(err)
	}
	if !in.Node || !slices.Equal(in.Files, []string{unit, env, config}) {
		t.Errorf("node %t, files %q", in.Node, in.Files)
	}
	for key, want := range map[string][]string{
		"tls-san": {"of.the.file"}, "node-name": {"of the unit"}, "token": {"it is secret"}, "debug": {"true"},
		"server": {"https://192.0.2.1:6443"}, "node-label": {"a=b", "c=d"}, "cluster-init": {"true"},
		"kubelet-arg": {"eviction-hard=memory.available<1Mi,nodefs.available<1%"}, "data-dir": {"/srv/k3s"},
	} {
		i := slices.IndexFunc(in.entries, func(e entry) bool { return e.key == key })
		if i < 0 || !slices.Equal(in.entries[i].values, want) {
			t.Errorf("%s: %v, want %q", key, in.entries, want)
		}
	}
	if err := os.WriteFile(unit, []byte("[Service]\nExecStart=/bin/sleep 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := new(Input).ReadUnit(unit); err == nil || !strings.Contains(err.Error(), "ExecStart is no command") {
		t.Error(err)
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string][]string{
		`a  b	c`: {"a", "b", "c"}, `'a b' "c d"`: {"a b", "c d"}, `a\ b`: {"a b"}, `--x='1 2'`: {"--x=1 2"}, `''`: {""},
		`"a\"b"`: {`a"b`}, `'a\b'`: {`a\b`}, ``: nil,
	} {
		if got, err := words(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
	if _, err := words(`'a`); err == nil {
		t.Error("a quote without an end is accepted")
	}
}
