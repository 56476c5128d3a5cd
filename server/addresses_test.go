package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	settings "github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/pki"
)

// cable is an interface of the tests' network namespace, with an address.
func cable(t *testing.T, address string) netlink.Link {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable0"}, PeerName: "cable1"}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(v); err != nil {
			t.Error(err)
		}
	})
	peer, err := netlink.LinkByName(v.PeerName)
	if err := errors.Join(err, netlink.LinkSetUp(v), netlink.LinkSetUp(peer),
		netlink.AddrAdd(v, parseAddr(t, address))); err != nil {
		t.Fatal(err)
	}
	return v
}

func parseAddr(t *testing.T, text string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// wholeConfig is one that New takes, without a node-ip.
func wholeConfig(dir string) Config {
	var c Config
	if err := settings.Parse("no settings", "", &c); err != nil {
		panic(err)
	}
	c.DataDir, c.RunDir, c.WriteKubeconfig = filepath.Join(dir, "data"), filepath.Join(dir, "run"), filepath.Join(dir,
		"kubeconfig")
	return c
}

// newServer is a server that is not running.
func newServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	addrs, err := Addresses(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(cfg, Start{Addresses: addrs}, log)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAnotherAddressDuringAStart: one server of several, with a node, whose address changes before its node has
// joined, would have told the others one and its certificates another.
func TestAnotherAddressDuringAStart(t *testing.T) {
	link := cable(t, "10.9.0.5/24")
	cfg := wholeConfig(t.TempDir())
	cfg.ClusterInit = true
	s := newServer(t, cfg)
	if a := s.address.IP(); a != "10.9.0.5" {
		t.Fatalf("advertises %q", a)
	}
	if err := errors.Join(netlink.AddrDel(link, parseAddr(t, "10.9.0.5/24")),
		netlink.AddrAdd(link, parseAddr(t, "10.9.0.6/24"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := s.address.Run(ctx, func() {})
	var moved *nodeip.Moved
	if !errors.As(err, new(*lifecycle.ReexecError)) || !errors.As(err, &moved) ||
		!slices.Equal(moved.To, []netip.Addr{netip.MustParseAddr("10.9.0.6")}) {
		t.Errorf("goes on with it: %v", err)
	}
}

// TestAnAddressIsPublishedAfterAFailure: what could not be put into the certificate is put there by the part's next
// run.
func TestAnAddressIsPublishedAfterAFailure(t *testing.T) {
	link := cable(t, "10.9.0.5/24")
	cfg := wholeConfig(t.TempDir())
	if err := netlink.AddrDel(link, parseAddr(t, "10.9.0.5/24")); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, cfg)
	if err := netlink.AddrAdd(link, parseAddr(t, "10.9.0.6/24")); err != nil {
		t.Fatal(err)
	}
	crt := s.pki.CertFile(pki.APIServer)
	// A folder where the file belongs: it cannot be written.
	if err := errors.Join(os.Remove(crt), os.MkdirAll(crt+"/in-the-way", 0o700)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.address.Run(ctx, func() {}); err == nil || ctx.Err() != nil {
		t.Fatalf("the certificate could be written: %v", err)
	}
	if err := os.RemoveAll(crt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.address.Run(ctx, func() {}) }()
	for !certificateHas(crt, "10.9.0.6") {
		select {
		case <-ctx.Done():
			t.Fatal("the address does not come into the certificate")
		case <-time.After(20 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func certificateHas(file, ip string) bool {
	raw, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return false
	}
	c, err := x509.ParseCertificate(b.Bytes)
	return err == nil && slices.ContainsFunc(c.IPAddresses, func(a net.IP) bool { return a.String() == ip })
}
