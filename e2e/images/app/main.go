// Command app is the program in the tests' container image: servers to talk to, clients to talk with, and
// processes that misbehave in a known way. One program, so that one small image serves every test.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// command is one thing that the program can be.
type command struct {
	use string
	run func(ctx context.Context, args []string, out io.Writer) error
}

func commands() map[string]command {
	return map[string]command{
		"serve":   {"[-http :8080] [-tcp :8081] [-udp :8081]: answers who it is and whom it sees", serve},
		"webhook": {"DIR: admission webhook on :8443 with DIR/tls.crt and tls.key; labels pods, refuses those named forbidden-*", webhook},
		"grpc":    {"[ADDR]: gRPC health server; SERVING from the moment the file /tmp/serving exists", grpcHealth},
		"get":     {"URL: body of an HTTP GET", get},
		"tcp":     {"ADDR: what the server at ADDR says of this connection", dialTCP},
		"udp":     {"ADDR: what the server at ADDR says of a datagram", dialUDP},
		"lookup":  {"host|srv|ptr NAME: sorted answers, a line each", lookup},
		"forge":   {"SOURCE ADDR: sends a datagram to ADDR with another's source", forge},
		"flood":   {"ADDR SECONDS: asks the name server at ADDR as fast as it can; how often", flood},
		"hog":     {"MIB: takes memory until it is killed", hog},
		"signals": {"[FILE]: prints each signal; ends at TERM after writing FILE", signals},
		"slow":    {"SECONDS: takes that long to stop after TERM", slow},
		"sum":     {": SHA-256 of what comes in on stdin", sum},
		"crash":   {"CODE: exits with CODE", nil},
	}
}

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	all := commands()
	if len(args) == 0 || all[args[0]].use == "" {
		for _, n := range slices.Sorted(func(yield func(string) bool) {
			for n := range all {
				if !yield(n) {
					return
				}
			}
		}) {
			_, _ = fmt.Fprintln(stderr, "app", n, all[n].use)
		}
		return 2
	}
	if args[0] == "crash" {
		code := 1
		_, _ = fmt.Sscan(strings.Join(args[1:], ""), &code)
		return code
	}
	if err := all[args[0]].run(ctx, args[1:], stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "app:", err)
		return 1
	}
	return 0
}
