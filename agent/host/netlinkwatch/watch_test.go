package netlinkwatch

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

// TestFollow: what is asked for arrives, and a subscription that broke off is followed by another.
func TestFollow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := errors.New("enough")
	begun := 0
	err = Follow(ctx, Kinds{Routes: true, Addrs: true, Links: true}, func(m Messages) error {
		begun++
		a, err := netlink.ParseAddr("192.0.2.7/32")
		if err != nil {
			return err
		}
		if begun == 1 {
			err = netlink.AddrAdd(lo, a)
		} else {
			err = netlink.AddrDel(lo, a)
		}
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(lo, 65000+begun); err != nil {
			return err
		}
		for route, addr, link := false, false, false; !route || !addr || !link; {
			select {
			case <-m.Links:
				link = true
			case <-m.Routes:
				route = true
			case u := <-m.Addrs:
				addr = addr || u.LinkAddress.IP.String() == "192.0.2.7"
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if begun == 2 {
			return ended
		}
		return nil // as after Lost
	})
	if !errors.Is(err, ended) {
		t.Errorf("%v after %d subscriptions", err, begun)
	}
	if err := Follow(ctx, Kinds{Addrs: true}, func(m Messages) error {
		if m.Routes != nil || m.Addrs == nil {
			t.Error("not what was asked for")
		}
		cancel()
		return nil
	}); err != nil {
		t.Error(err)
	}
}
