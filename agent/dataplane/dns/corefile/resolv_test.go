package corefile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"
)

func TestParseResolvConf(t *testing.T) {
	got, err := corefile.ParseResolvConf(strings.NewReader("# nameserver 192.0.2.9\nsearch a b\nnameserver 192.0.2.1\n" +
		"nameserver\t2001:db8::1 # remark\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver 192.0.2.1\nnameserver ::ffff:192.0.2.2\noptions rotate\n"))
	if want := "[192.0.2.1 2001:db8::1 fe80::1%eth0 192.0.2.2]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

// FuzzParseResolvConf: what comes out can be written into a Corefile.
func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n")
	f.Fuzz(func(t *testing.T, text string) {
		servers, err := corefile.ParseResolvConf(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range servers {
			if _, err := netip.ParseAddr(s); err != nil {
				t.Fatal(err)
			}
		}
		o := options()
		o.Upstreams = servers
		if _, err := corefile.Rewrite(". {\n forward . /etc/resolv.conf\n}\n", o); err != nil {
			t.Fatalf("%q: %v", servers, err)
		}
	})
}
