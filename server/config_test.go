package server

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/pki"
)

// TestWeakPasswords: a password that a person has chosen is long, except on a server that runs with a short one already.
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
	c.NodeIP = []string{"192.0.2.7"}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	addrs, err := Addresses(ctx, c, log)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Join(ctx, c, addrs, log)
	if err == nil || !strings.Contains(err.Error(), "umiak token create --kind server") || strings.Contains(err.Error(), c.Token) {
		t.Error(err)
	}
	select {
	case <-came:
		t.Error("it has connected")
	default:
	}
}

// valid is a configuration with nothing wrong.
func valid() Config {
	return Config{
		HTTPSPort: 6443, NodePorts: "30000-32767", ClusterCIDR: []string{"10.42.0.0/16"}, ServiceCIDR: []string{"10.43.0.0/16"}, ClusterDomain: "cluster.local",
		FlannelBackend: "vxlan", WriteKubeconfigMode: "0600", Snapshots: backup.Config{Schedule: "@daily", Retention: 1},
	}
}

func TestDatastoreSettings(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"datastore-endpoint: it does not begin with": func(c *Config) { c.DatastoreEndpoint = "sqlite://s3cr3t" },
		"cluster-init: is for etcd in this process":  func(c *Config) { c.DatastoreEndpoint, c.ClusterInit = "mysql://u:s3cr3t@tcp(db)/k", true },
		"datastore-cafile: needs datastore-endpoint": func(c *Config) { c.DatastoreCA = "/ca" },
		"datastore-certfile: and datastore-keyfile":  func(c *Config) { c.DatastoreEndpoint, c.DatastoreCert = "https://e:2379", "/c" },
		"snapshot-retention: 0":                      func(c *Config) { c.Snapshots.Retention = 0 },
	} {
		c := valid()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestSettingsThatCannotWorkAreRefused: check and install.sh ask Validate before a server is stopped for its settings.
func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	text := write("text", "no such thing\n")
	for want, change := range map[string]func(*Config){
		"cluster-cidr: 10.42.0.0/25 has no room for a node's range, which is a /24": func(c *Config) { c.ClusterCIDR = []string{"10.42.0.0/25"} },
		"cluster-cidr: fd00::/40 is too large":                                      func(c *Config) { c.ClusterCIDR, c.ServiceCIDR = []string{"fd00::/40"}, []string{"fd01::/112"} },
		"cluster-cidr: 10.0.0.0/8 is too large": func(c *Config) {
			c.ClusterCIDR, c.ServiceCIDR, c.ControllerArg = []string{"10.0.0.0/8"}, []string{"172.16.0.0/16"}, []string{"node-cidr-mask-size=25"}
		},
		"service-cidr: 10.43.0.0/30 is too small":                                                  func(c *Config) { c.ServiceCIDR = []string{"10.43.0.0/30"} },
		"cluster-dns: 9.9.9.9 is outside of service-cidr":                                          func(c *Config) { c.ClusterDNS = []string{"9.9.9.9"} },
		"cluster-dns: 10.43.0.1 is taken":                                                          func(c *Config) { c.ClusterDNS = []string{"10.43.0.1"} },
		`tls-san: "münchen.local" is not a name for a certificate: certificates have names in ASC`: func(c *Config) { c.TLSSAN = []string{"münchen.local"} },
		`tls-san: "https://x:6443" is not a name`:                                                  func(c *Config) { c.TLSSAN = []string{"https://x:6443"} },
		`tls-san: "a.b c.d" is not a name`:                                                         func(c *Config) { c.TLSSAN = []string{"a.b c.d"} },
		"advertise-address: 0.0.0.0 is no address":                                                 func(c *Config) { c.AdvertiseAddress = "0.0.0.0" },
		"https-listen-port: 10250 is the port of the kubelet as well":                              func(c *Config) { c.HTTPSPort, c.KubeletPort = 10250, 10250 },
		"audit-policy: /tmp is not a regular file":                                                 func(c *Config) { c.AuditPolicy = "/tmp" },
		"audit-policy: " + text + " is not an audit policy":                                        func(c *Config) { c.AuditPolicy = text },
		"kube-scheduler-arg: config: open /nope":                                                   func(c *Config) { c.SchedulerArg = []string{"config=/nope"} },
		"kube-scheduler-arg: config: " + text:                                                      func(c *Config) { c.SchedulerArg = []string{"--config=" + text} },
		"kube-apiserver-arg: audit-policy-file: open /nope":                                        func(c *Config) { c.APIServerArg = []string{"audit_policy_file=/nope"} },
		"kube-apiserver-arg: oidc-ca-file: stat /nope":                                             func(c *Config) { c.APIServerArg = []string{"oidc-ca-file=/nope"} },
		"datastore-cafile: open /nope":                                                             func(c *Config) { c.DatastoreEndpoint, c.DatastoreCA = "https://e:2379", "/nope" },
		"datastore-cafile: " + text + " holds no certificate":                                      func(c *Config) { c.DatastoreEndpoint, c.DatastoreCA = "https://e:2379", text },
		"datastore-keyfile: open /nope": func(c *Config) {
			c.DatastoreEndpoint, c.DatastoreCert, c.DatastoreKey = "https://e:2379", text, "/nope"
		},
		"datastore-certfile: tls: ":  func(c *Config) { c.DatastoreEndpoint, c.DatastoreCert, c.DatastoreKey = "https://e:2379", text, text },
		"snapshot-passphrase-file: ": func(c *Config) { c.Snapshots.PassphraseFile = "/nope" },
	} {
		c := valid()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"names": func(c *Config) {
			c.TLSSAN = []string{"pi.local", "*.example.com", "my_host", "Pi", "10.0.0.1", "fd00::1", "xn--mnchen-3ya.local"}
		},
		"largest": func(c *Config) { c.ClusterCIDR, c.ServiceCIDR = []string{"10.0.0.0/8"}, []string{"172.16.0.0/16"} },
		"two": func(c *Config) {
			c.ClusterCIDR, c.ServiceCIDR = []string{"10.42.0.0/16", "fd00:42::/56"}, []string{"10.43.0.0/16", "fd00:43::/112"}
		},
		"small": func(c *Config) {
			c.ClusterCIDR, c.ControllerArg = []string{"10.42.0.0/25"}, []string{"node-cidr-mask-size=27"}
		},
		"dns":                func(c *Config) { c.ServiceCIDR, c.ClusterDNS = []string{"10.43.0.0/29"}, []string{"10.43.0.5"} },
		"a DNS of one's own": func(c *Config) { c.Disable, c.ClusterDNS = []string{"dns"}, []string{"169.254.20.10"} },
		"audit rules": func(c *Config) {
			c.AuditPolicy = write("audit", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]\n")
		},
		"scheduler": func(c *Config) {
			c.SchedulerArg = []string{"config=" + write("sched", "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n")}
		},
	} {
		c := valid()
		change(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	start := valid()
	start.Snapshots.PassphraseFile = "/not/mounted/yet"
	if err := start.ValidateStart(); err != nil {
		t.Errorf("the server does not start without a file that only snapshots need: %v", err)
	}
	// All at once; files of another machine are not looked for.
	c := valid()
	c.AuditPolicy, c.TLSSAN, c.ClusterDNS = "/nope", []string{"a b"}, []string{"9.9.9.9"}
	if err := c.Validate(); strings.Count(err.Error(), "\n") != 2 {
		t.Error(err)
	}
	if err := c.ValidateValues(); strings.Contains(err.Error(), "/nope") {
		t.Error(err)
	}
}
