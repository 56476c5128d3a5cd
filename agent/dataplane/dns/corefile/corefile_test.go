package corefile_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"
	"github.com/umiak-io/umiak/internal/testing/golden"
)

func options() corefile.Options {
	return corefile.Options{
		Bind:      []netip.Addr{netip.MustParseAddr("169.254.53.53")},
		Port:      20053,
		Own:       []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		Upstreams: []string{"192.0.2.1", "2001:db8::1", "10.43.0.10"},
		Handle:    "@1",
		Files: map[string]string{
			"/etc/coredns/custom/a.override":    "log\n",
			"/etc/coredns/custom/b.server":      "example.org {\n  forward . 192.0.2.7\n}\n",
			"/etc/coredns/custom/c.server":      "import /etc/coredns/custom/d.part\n",
			"/etc/coredns/custom/d.part":        "example.net:53 {\n template IN A {\n  answer \"{{ .Name }} 60 IN A 192.0.2.9\"\n }\n}\n",
			"/etc/coredns/custom/loop.circle":   "import /etc/coredns/custom/loop.circle\n",
			"/etc/coredns/custom/unbalanced.in": "}\n",
		},
	}
}

// TestGolden rewrites each testdata/*.in and compares with the file of the same name with .out.
func TestGolden(t *testing.T) {
	golden.Walk(t, func(in string) string {
		res, err := corefile.Rewrite(in, options())
		if err != nil {
			return "# error: " + err.Error() + "\n"
		}
		got := res.Text
		for _, n := range res.Notes {
			got += "# note: " + n + "\n"
		}
		if !res.Forwards {
			got += "# nothing is forwarded\n"
		}
		return got
	})
}

func TestDropForward(t *testing.T) {
	res, err := corefile.Rewrite(". {\n forward . /etc/resolv.conf\n cache 30\n}\n", options())
	if err != nil {
		t.Fatal(err)
	}
	without, err := corefile.DropForward(res.Text)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(without.Text, "forward") || !strings.Contains(without.Text, "cache 30") {
		t.Fatal(without.Text)
	}
}

// FuzzRewrite: whatever comes in, what comes out is read back by the parser, listens only where it may,
// and is the same when it is written again.
func FuzzRewrite(f *testing.F) {
	ins, _ := filepath.Glob("testdata/*.in")
	for _, in := range ins {
		b, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("a\\\" {\nerrors \"\\\" \n\" x\n}")
	f.Fuzz(func(t *testing.T, text string) {
		res, err := corefile.Rewrite(text, options())
		if err != nil {
			return
		}
		blocks, err := caddyfile.Parse("Corefile", strings.NewReader(res.Text), corefile.Order())
		if err != nil {
			t.Fatalf("%v\n%s", err, res.Text)
		}
		if len(blocks) == 0 {
			t.Fatal("no blocks")
		}
		for _, b := range blocks {
			for _, banned := range []string{"health", "ready", "prometheus", "reload", "loop", "kubernetes"} {
				if _, ok := b.Tokens[banned]; ok {
					t.Fatalf("%s in\n%s", banned, res.Text)
				}
			}
			bind := b.Tokens["bind"]
			if len(bind) != 2 || bind[1].Text != "169.254.53.53" {
				t.Fatalf("bind %v in\n%s", bind, res.Text)
			}
		}
		if _, err := corefile.DropForward(res.Text); err != nil {
			t.Fatalf("%v\n%s", err, res.Text)
		}
	})
}
