package foreign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/internal/status"
)

const scheme = "unix://"

// Socket returns the path in a value of container-runtime-endpoint, which is a path or a URL unix://PATH.
func Socket(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, scheme)
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("%q is not the path of a socket, such as /run/containerd/containerd.sock or unix:///run/crio/crio.sock",
			endpoint)
	}
	return path, nil
}

// Runtime is the container runtime at a socket.
type Runtime struct {
	socket string
	log    *slog.Logger

	mu   sync.Mutex
	name string // with the version; empty while it does not answer
}

// New returns the runtime at the socket, which need not be there yet.
func New(socket string, log *slog.Logger) *Runtime {
	return &Runtime{socket: socket, log: log.With("component", "container-runtime")}
}

// Run calls ready when the runtime answers, and returns an error when it is gone, or ends with ctx.
func (r *Runtime) Run(ctx context.Context, ready func()) error {
	conn, err := dial(r.socket)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	name, err := version(ctx, conn, grpc.WaitForReady(true))
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("ask the container runtime at %s: %w", r.socket, err)
	}
	r.set(name)
	defer r.set("")
	r.log.Info("the container runtime answers", "runtime", name, "socket", r.socket)
	ready()
	for {
		state := conn.GetState()
		if state != connectivity.Ready {
			return fmt.Errorf("the container runtime at %s is gone: start it again", r.socket)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return nil
		}
	}
}

func (r *Runtime) set(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.name = name
}

// Rows reports the runtime for the section of the node.
func (r *Runtime) Rows() []status.Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	row := status.Row{Name: "container runtime", State: r.name, Detail: r.socket + "; images, registries and sharing are its own"}
	if r.name == "" {
		row.State = "does not answer"
	}
	return []status.Row{row}
}

// Ask returns name and version of the runtime at a socket.
func Ask(ctx context.Context, socket string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	name, err := ask(ctx, socket)
	if err != nil {
		return "", fmt.Errorf("no container runtime answers at %s (%w): start it, or correct container-runtime-endpoint",
			socket, err)
	}
	return name, nil
}

func ask(ctx context.Context, socket string) (string, error) {
	probe, err := new(net.Dialer).DialContext(ctx, "unix", socket) // gRPC would log what fails
	if err != nil {
		return "", err
	}
	_ = probe.Close()
	conn, err := dial(socket)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	return version(ctx, conn)
}

const askTimeout = 5 * time.Second

func dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(scheme+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0), // the connection shows when the runtime ends
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: askTimeout,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}}))
	if err != nil {
		return nil, fmt.Errorf("connect to the container runtime at %s: %w", socket, err)
	}
	return conn, nil
}

// version asks for name and version, as "cri-o 1.37.0".
func version(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) (string, error) {
	v, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}, opts...)
	if err != nil {
		return "", err
	}
	if v.RuntimeName == "" {
		return "", errors.New("it does not tell its name")
	}
	return v.RuntimeName + " " + v.RuntimeVersion, nil
}
