package dns

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/coredns/caddy"
)

// TestStopRightAfterStart: what is stopped at once, as on a busy machine, neither holds its port nor answers any more.
func TestStopRightAfterStart(t *testing.T) {
	if err := register(); err != nil {
		t.Fatal(err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // a goroutine that is started waits until this one does
	addr := netip.MustParseAddrPort("127.0.0.1:20053")
	s := &Server{bind: []netip.Addr{addr.Addr()}, port: addr.Port(), log: slog.New(slog.DiscardHandler)}
	text := fmt.Sprintf(".:%d {\n bind %s\n}\n", addr.Port(), addr.Addr())
	for range 20 {
		inst, err := startOrReplace(nil, caddy.CaddyfileInput{Filepath: "Corefile",
			Contents: []byte(text), ServerTypeName: "dns"})
		if err != nil {
			t.Fatal(err)
		}
		s.awaitAnswers()
		if err := inst.Stop(); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			t.Fatalf("after the end: %v", err)
		}
		_ = l.Close()
	}
}
