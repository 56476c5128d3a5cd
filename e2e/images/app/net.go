package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// identity is what servers say of themselves and of the peer they see.
func identity(peer net.Addr) string {
	host, _ := os.Hostname()
	from := peer.String()
	if h, _, err := net.SplitHostPort(from); err == nil {
		from = h
	}
	return host + " " + from
}

func serve(ctx context.Context, args []string, out io.Writer) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	httpAddr, tcpAddr, udpAddr := f.String("http", ":8080", ""), f.String("tcp", ":8081", ""), f.String("udp", ":8081",
		"")
	if err := f.Parse(args); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s %s\n", host, from)
	})
	mux.HandleFunc("/env/{name}", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, os.Getenv(r.PathValue("name")))
	})
	mux.HandleFunc("/file/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, strings.TrimPrefix(r.URL.Path, "/file"))
	})
	// Probes point here: a file's presence is the answer, so that a test can change it with exec.
	mux.HandleFunc("/if/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(strings.TrimPrefix(r.URL.Path, "/if")); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	if *httpAddr != "" {
		srv := &http.Server{Addr: *httpAddr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		g.Go(srv.ListenAndServe)
	}
	if *tcpAddr != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *tcpAddr)
		if err != nil {
			return err
		}
		g.Go(func() error {
			for {
				c, err := l.Accept()
				if err != nil {
					return err
				}
				go func() {
					defer c.Close() //nolint:errcheck // the peer notices
					_, _ = fmt.Fprintln(c, identity(c.RemoteAddr()))
					_, _ = io.Copy(c, c)
				}()
			}
		})
	}
	if *udpAddr != "" {
		p, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", *udpAddr)
		if err != nil {
			return err
		}
		g.Go(func() error {
			buf := make([]byte, 2048)
			for {
				_, peer, err := p.ReadFrom(buf)
				if err != nil {
					return err
				}
				_, _ = p.WriteTo([]byte(identity(peer)+"\n"), peer)
			}
		})
	}
	_, _ = fmt.Fprintln(out, "serving")
	return g.Wait()
}

func get(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("get takes a URL")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

func dialTCP(ctx context.Context, args []string, out io.Writer) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", strings.Join(args, ""))
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // done
	return readLine(c, out)
}

func dialUDP(ctx context.Context, args []string, out io.Writer) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "udp", strings.Join(args, ""))
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // done
	if _, err := c.Write([]byte("who\n")); err != nil {
		return err
	}
	return readLine(c, out)
}

func readLine(c net.Conn, out io.Writer) error {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	_, err = out.Write(buf[:n])
	return err
}

func lookup(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("lookup takes a kind and a name")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true}
	var answers []string
	var err error
	switch args[0] {
	case "host":
		answers, err = r.LookupHost(ctx, args[1])
	case "ptr":
		answers, err = r.LookupAddr(ctx, args[1])
	case "srv":
		var srv []*net.SRV
		_, srv, err = r.LookupSRV(ctx, "", "", args[1])
		for _, s := range srv {
			answers = append(answers, fmt.Sprintf("%s:%d", s.Target, s.Port))
		}
	default:
		err = fmt.Errorf("%q is not host, srv or ptr", args[0])
	}
	slices.Sort(answers)
	for _, a := range answers {
		_, _ = fmt.Fprintln(out, a)
	}
	return err
}

func grpcHealth(ctx context.Context, args []string, _ io.Writer) error {
	addr := ":8082"
	if len(args) > 0 {
		addr = args[0]
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, fileHealth{Server: health.NewServer()})
	return s.Serve(l)
}

// fileHealth is healthy while /tmp/serving exists.
type fileHealth struct{ *health.Server }

func (fileHealth) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse,
	error) {
	st := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if _, err := os.Stat("/tmp/serving"); err == nil {
		st = grpc_health_v1.HealthCheckResponse_SERVING
	}
	return &grpc_health_v1.HealthCheckResponse{Status: st}, nil
}
