package cluster

import (
	"context"
	"io"
	"net"
	"net/url"

	"k8s.io/client-go/rest"
)

// forwarder lets what cannot be given a dialer reach the API server, by a port on the host's loopback.
type forwarder struct{ net.Listener }

// Streaming is a client configuration for exec, attach and port-forward, whose transports make their own
// connections.
func (c *Cluster) Streaming() (*rest.Config, error) {
	u, err := url.Parse(c.REST.Host)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fwd == nil {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		c.fwd = &forwarder{l}
		go c.fwd.serve(c, u.Host)
	}
	cfg := rest.CopyConfig(c.REST)
	cfg.Dial = nil
	cfg.Host = "https://" + c.fwd.Addr().String()
	return cfg, nil
}

func (f *forwarder) serve(c *Cluster, target string) {
	for {
		in, err := f.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close() //nolint:errcheck // both ends notice
			out, err := c.M.Dial(context.Background(), "tcp", target)
			if err != nil {
				return
			}
			defer out.Close() //nolint:errcheck // both ends notice
			go func() {
				_, _ = io.Copy(out, in)
				_ = out.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}
