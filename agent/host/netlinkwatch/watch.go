package netlinkwatch

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Kinds selects what to follow.
type Kinds struct{ Routes, Addrs, Links bool }

// Messages are the kernel's, from the moment at which a subscription began.
type Messages struct {
	Routes <-chan netlink.RouteUpdate // nil unless asked for
	Addrs  <-chan netlink.AddrUpdate  // nil unless asked for
	Links  <-chan netlink.LinkUpdate  // nil unless asked for
	// Lost receives a value when messages were lost or none will come any more. One of the other channels may be closed
	// before that.
	Lost <-chan struct{}
}

// Follow subscribes to the messages and calls follow, which returns nil after it has received from Lost or from a closed
// channel. Then it begins anew, and follow has to look at the state of things again. It returns when follow fails, when
// there is no subscription to be had, or after ctx has ended, which follow watches itself.
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
		return fmt.Errorf("listen for changes of routes, addresses and links: %w", err)
	}
	return follow(m)
}

// drain takes what the library still has to send, so that its goroutine is not held up. The library closes the channel.
func drain[T any](c <-chan T) {
	go func() {
		for range c {
		}
	}()
}
