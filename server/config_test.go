package server

import (
	"strings"
	"testing"

	"github.com/umiak-io/umiak/server/backup"
)

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
