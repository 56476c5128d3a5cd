package netlinkwatch

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Kinds selects the messages to follow.
type Kinds struct{ Routes, Addrs, Links bool }

// Messages are the channels of one subscription.
type Messages struct {
	Routes <-chan netlink.RouteUpdate // nil unless selected
	Addrs  <-chan netlink.AddrUpdate  // nil unless selected
	Links  <-chan netlink.LinkUpdate  // nil unless selected
	// Lost receives a value when messages were lost or the subscription has ended. Another channel may be closed
	// before.
	Lost <-chan struct{}
}

// Follow subscribes and calls follow, which must read the current state first and return nil when it receives from Lost
// or from a closed channel; then Follow subscribes again. Follow returns when follow fails, when subscribing fails, or
// after ctx has ended, which follow must watch itself.
func Follow(ctx context.Context, kinds Kinds, follow func(Messages) error) error {
	for {
		if err := once(kinds, follow); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

func once(kinds Kinds, follow func(Messages) error) error {
	done := make(chan struct{})
	defer close(done)
	lost := make(chan struct{}, 1)
	broken := func(error) {
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	m := Messages{Lost: lost}
	var errRoutes, errAddrs, errLinks error
	if kinds.Routes {
		c := make(chan netlink.RouteUpdate, 64)
		errRoutes = netlink.RouteSubscribeWithOptions(c, done, netlink.RouteSubscribeOptions{ErrorCallback: broken})
		if m.Routes = c; errRoutes == nil {
			defer drain(c)
		}
	}
	if kinds.Addrs {
		c := make(chan netlink.AddrUpdate, 64)
		errAddrs = netlink.AddrSubscribeWithOptions(c, done, netlink.AddrSubscribeOptions{ErrorCallback: broken})
		if m.Addrs = c; errAddrs == nil {
			defer drain(c)
		}
	}
	if kinds.Links {
		c := make(chan netlink.LinkUpdate, 64)
		errLinks = netlink.LinkSubscribeWithOptions(c, done, netlink.LinkSubscribeOptions{ErrorCallback: broken})
		if m.Links = c; errLinks == nil {
			defer drain(c)
		}
	}
	if err := errors.Join(errRoutes, errAddrs, errLinks); err != nil {
		return fmt.Errorf("subscribe to routes, addresses and links: %w", err)
	}
	return follow(m)
}

// drain reads what the library still sends, so that its goroutine can end. The library closes the channel.
func drain[T any](c <-chan T) {
	go func() {
		for range c {
		}
	}()
}
