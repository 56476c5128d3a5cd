package cleanup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/host"
)

// removeInterfaces deletes the interfaces in the journal, the veth interfaces attached to them, and all with umiak's
// prefix.
func (c *cleaner) removeInterfaces(context.Context) error {
	recorded := map[string]bool{}
	for _, n := range c.made(host.KindInterface) {
		recorded[n] = true
	}
	// The kernel is removing the interfaces of killed pods, which may interrupt the listing.
	links, err := netlinksafe.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	ours := map[int]bool{}
	for _, l := range links {
		if a := l.Attrs(); recorded[a.Name] || strings.HasPrefix(a.Name, "umiak") {
			ours[a.Index] = true
		}
	}
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if !ours[a.Index] && (l.Type() != "veth" || !ours[a.MasterIndex]) {
			continue
		}
		var missing netlink.LinkNotFoundError
		if err := netlink.LinkDel(l); err != nil && !errors.As(err, &missing) {
			if _, gone := netlink.LinkByIndex(a.Index); gone == nil {
				errs = append(errs, fmt.Errorf("delete interface %s: %w", a.Name, err))
				continue
			}
		}
		c.printf("deleted interface %s", a.Name)
	}
	if len(errs) == 0 {
		for n := range recorded {
			errs = append(errs, c.gone(host.KindInterface, n))
		}
	}
	return errors.Join(errs...)
}

// removeTables deletes the nftables tables with umiak's prefix.
func (c *cleaner) removeTables(ctx context.Context) error {
	removed, err := netfilter.RemoveAll(ctx)
	if err != nil {
		return err
	}
	if len(removed) > 0 {
		c.printf("deleted nftables table %s", strings.Join(removed, ", "))
	}
	var errs []error
	for _, n := range c.made(host.KindTable) {
		errs = append(errs, c.gone(host.KindTable, n))
	}
	return errors.Join(errs...)
}
