package server

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/server/pki"
)

func testConfig(dir string) Config {
	return Config{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), HTTPSPort: 6443, NodeIP: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")}, ClusterDomain: "cluster.local",
		TLSSAN: []string{"umiak.example", "198.51.100.7"}, WriteKubeconfig: filepath.Join(dir, "home", "config"), WriteKubeconfigMode: 0o640,
	}
}

func TestServingNamesFollowTheSettings(t *testing.T) {
	dir := t.TempDir()
	s := &Server{cfg: testConfig(dir), dirs: testConfig(dir).Dirs(), log: slog.New(slog.DiscardHandler), addrs: fixedAddress(t, "192.0.2.10")}
	if err := s.prepare(pki.Config{}, nil); err != nil {
		t.Fatal(err)
	}
	l := s.servingLeaf()
	for _, want := range []string{"kubernetes.default.svc.cluster.local", "localhost", "umiak.example"} {
		if !slices.Contains(l.DNSNames, want) {
			t.Errorf("%s is not in %v", want, l.DNSNames)
		}
	}
	for _, want := range []string{"127.0.0.1", "::1", "192.0.2.10", "10.43.0.1", "fd00:43::1", "198.51.100.7"} {
		if !slices.Contains(l.IPs, want) {
			t.Errorf("%s is not in %v", want, l.IPs)
		}
	}
	for file, mode := range map[string]os.FileMode{s.dirs.AdminKubeconfig(): 0o600, s.cfg.WriteKubeconfig: 0o640} {
		fi, err := os.Stat(file)
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, fi, err)
			continue
		}
		c, err := clientcmd.BuildConfigFromFlags("", file)
		if err != nil || c.Host != "https://127.0.0.1:6443" || len(c.KeyData) == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// fixedAddress is a node-ip, which needs not be on the machine.
func fixedAddress(t *testing.T, ip string) *nodeip.Tracker {
	t.Helper()
	a, err := nodeip.New(nodeip.Config{Asked: []netip.Addr{netip.MustParseAddr(ip)}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAddressesThatPodsCannotReachAreRefused(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "0.0.0.0", "::1", "fe80::1", "224.0.0.1"} {
		if _, err := advertiseAddress(Config{AdvertiseAddress: netip.MustParseAddr(a)}, nil); err == nil || !strings.Contains(err.Error(), "advertise-address") {
			t.Errorf("%s: %v", a, err)
		}
	}
	if a, err := advertiseAddress(Config{}, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}); err != nil || a != "192.0.2.1" {
		t.Errorf("got %s, %v", a, err)
	}
	// The tests' namespace has no default route.
	if _, err := advertiseAddress(Config{}, nil); err == nil || !strings.Contains(err.Error(), "set node-ip") {
		t.Errorf("got %v", err)
	}
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
