package server

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/server/pki"
)

func testConfig(dir string) Config {
	return Config{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), HTTPSPort: 6443,
		NodeIP:              nodeip.At(netip.MustParseAddr("192.0.2.10")),
		ClusterCIDR:         []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		ServiceCIDR:         []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")},
		ClusterDomain:       "cluster.local",
		TLSSAN:              []pki.SAN{{Name: "umiak.example"}, {Addr: netip.MustParseAddr("198.51.100.7")}},
		WriteKubeconfig:     filepath.Join(dir, "home", "config"),
		WriteKubeconfigMode: 0o640,
	}
}

func TestServingNamesFollowTheSettings(t *testing.T) {
	dir := t.TempDir()
	c, addrs := testConfig(dir), fixedAddress(t, "192.0.2.10")
	if _, err := c.keys(pki.Config{}, addrs, datastore.Config{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	names, ips := c.serving().Names(), c.servingIPs(addrs)
	for _, want := range []string{"kubernetes.default.svc.cluster.local", "localhost", "umiak.example"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in %v", want, names)
		}
	}
	for _, want := range []string{"127.0.0.1", "::1", "192.0.2.10", "10.43.0.1", "fd00:43::1", "198.51.100.7"} {
		if !slices.Contains(ips, want) {
			t.Errorf("%s is not in %v", want, ips)
		}
	}
	for file, mode := range map[string]os.FileMode{c.Dirs().AdminKubeconfig(): 0o600, c.WriteKubeconfig: 0o640} {
		fi, err := os.Stat(file)
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, fi, err)
			continue
		}
		rc, err := clientcmd.BuildConfigFromFlags("", file)
		if err != nil || rc.Host != "https://127.0.0.1:6443" || len(rc.KeyData) == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// fixedAddress is a node-ip, which needs not be on the machine.
func fixedAddress(t *testing.T, ip string) *nodeip.Tracker {
	t.Helper()
	a, err := nodeip.New(nodeip.Config{Asked: nodeip.At(netip.MustParseAddr(ip)),
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestListensOnBothFamiliesWhereTheClusterHasBoth(t *testing.T) {
	for _, tc := range []struct {
		settings, want string
	}{
		{"service-cidr: 10.43.0.0/16", "0.0.0.0"},
		{"service-cidr: [10.43.0.0/16, 'fd00:43::/112']", "::"},
		{"bind-address: 192.0.2.1", "192.0.2.1"},
	} {
		var c Config
		if err := config.Parse("config.yaml", tc.settings, &c); err != nil {
			t.Fatal(err)
		}
		if got := bindAddress(c); got != tc.want {
			t.Errorf("%+v: got %s", tc, got)
		}
	}
}
