// Package announce is how a CNI plugin tells the agent of a pod's addresses before the pod runs, and
// waits until its policies are in force.
//
// A message is a line of JSON over a unix socket, and so is the answer. The plugin is a program that runs for
// milliseconds, so this imports nothing big. agent/dataplane/netpol listens, agent/dataplane/network/hostport calls.
package announce

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// Pod is one that gets addresses, or with Gone set, loses them.
type Pod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Container string       `json:"container"`
	Addrs     []netip.Addr `json:"addrs,omitempty"`
	Gone      bool         `json:"gone,omitempty"`
}

type answer struct {
	Error string `json:"error,omitempty"`
}

// maxMessage bounds what is read of a message.
const maxMessage = 16 << 10

// Send announces a pod and waits for the answer, and for a listener, until ctx ends.
func Send(ctx context.Context, socket string, p Pod) error {
	var conn net.Conn
	for {
		var err error
		if conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket); err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) || p.Gone {
			return fmt.Errorf("reach the agent: %w", err)
		}
		// The agent is starting: it listens in a moment.
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach the agent: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	defer conn.Close()                                                          //nolint:errcheck // the answer is what counts
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })() // ends what waits below
	if err := json.NewEncoder(conn).Encode(p); err != nil {
		return fmt.Errorf("announce the pod: %w", err)
	}
	var a answer
	if err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&a); err != nil {
		return fmt.Errorf("wait for the pod's network policies: %w", err)
	}
	if a.Error != "" {
		return fmt.Errorf("wait for the pod's network policies: %s", a.Error)
	}
	return nil
}

// Listen opens the socket. Only root may write to it.
func Listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for announcements: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers each announcement with what handle returns, until the listener is closed. The context of handle ends
// when the sender of the announcement has gone.
func Serve(ctx context.Context, l net.Listener, handle func(context.Context, Pod) error) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept announcement: %w", err)
		}
		go func() {
			defer conn.Close() //nolint:errcheck // answered or not
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			r := bufio.NewReader(io.LimitReader(conn, maxMessage))
			p, err := Read(r)
			if err == nil {
				go func() {
					// The plugin sends nothing more: what ends this is that it has gone.
					_, _ = r.ReadByte()
					cancel()
				}()
				err = handle(ctx, p)
			}
			var a answer
			if err != nil {
				a.Error = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(a)
		}()
	}
}

// Read reads an announcement.
func Read(r io.Reader) (Pod, error) {
	var p Pod
	dec := json.NewDecoder(r)
	if err := dec.Decode(&p); err != nil {
		return p, fmt.Errorf("read announcement: %w", err)
	}
	if p.Namespace == "" || p.Name == "" || p.Container == "" {
		return p, errors.New("read announcement: no pod is named")
	}
	return p, nil
}
