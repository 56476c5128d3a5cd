package agent

import (
	"strings"
	"testing"
)

// valid are settings with nothing wrong.
func valid() Config {
	return Config{
		DataDir: "/var/lib/umiak", RunDir: "/run/umiak", BalancerPort: 6444, NodeName: "n1", Snapshotter: "overlayfs", CgroupRoot: "/", KubeletPort: 10250,
		ShutdownGrace: "30s", ImageSharing: true,
	}
}

// TestSettingsThatCannotWorkAreRefused: check and install.sh ask Validate before a node is stopped for its settings.
func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"node-ip: 10.0.0.1 and 10.0.0.2 are of the same family": func(c *Config) { c.NodeIP = []string{"10.0.0.1", "10.0.0.2"} },
		"node-ip: 127.0.0.1 is this machine's own":              func(c *Config) { c.NodeIP = []string{"127.0.0.1"} },
		"node-ip: 0.0.0.0 stands for any address":               func(c *Config) { c.NodeIP = []string{"0.0.0.0"} },
		"node-ip: ::1 is this machine's own":                    func(c *Config) { c.NodeIP = []string{"10.0.0.1", "::1"} },
		"node-ip: 224.0.0.1 is a multicast address":             func(c *Config) { c.NodeIP = []string{"224.0.0.1"} },
		"node-ip: fe80::1 is a link-local address":              func(c *Config) { c.NodeIP = []string{"fe80::1"} },
		`node-ip: "fd00::1%eth0" is not an IP address`:          func(c *Config) { c.NodeIP = []string{"fd00::1%eth0"} },
		"lb-server-port: 10250 is kubelet-port as well":         func(c *Config) { c.BalancerPort = 10250 },
		"kubelet-port: 5001 is the port of image-sharing":       func(c *Config) { c.KubeletPort = 5001 },
		"image-credential-provider-config: stat /nope": func(c *Config) {
			c.KubeletArg = []string{"image-credential-provider-config=/nope", "image-credential-provider-bin-dir=/nope"}
		},
	} {
		c := valid()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	c := valid()
	c.NodeIP = []string{"10.0.0.1", "fd00::1"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	// All at once, and files of another machine are not looked for.
	c.NodeIP, c.BalancerPort = []string{"127.0.0.1"}, 10250
	c.KubeletArg = []string{"image-credential-provider-config=/nope", "image-credential-provider-bin-dir=/nope"}
	if err := c.Validate(); strings.Count(err.Error(), "\n") != 3 {
		t.Error(err)
	}
	if err := c.ValidateValues(); strings.Contains(err.Error(), "/nope") {
		t.Error(err)
	}
}
