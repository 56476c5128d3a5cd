package server

import (
	"context"
	"log/slog"
	"net"
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
	_, err = Join(ctx, c, slog.New(slog.DiscardHandler))
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
