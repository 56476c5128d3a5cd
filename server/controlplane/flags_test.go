package controlplane

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

func TestUsersFlagsWinAndListsAddUp(t *testing.T) {
	var sets cliflag.NamedFlagSets
	fs := sets.FlagSet("a")
	ttl := fs.Duration("event-ttl", 0, "")
	plugins := fs.StringSlice("enable-admission-plugins", []string{"Default"}, "")
	servers := fs.StringSlice("etcd-servers", nil, "")
	own := flags{{"event-ttl", "1h"}, {"enable-admission-plugins", "NodeRestriction"}, {"etcd-servers", "unix:///a"}}
	err := parse(sets, own, "kube-apiserver-arg", []string{"event-ttl=2h", "enable-admission-plugins=AlwaysPullImages", "etcd-servers=http://b", "etcd-servers=http://c"})
	if err != nil {
		t.Fatal(err)
	}
	if ttl.Hours() != 2 {
		t.Errorf("event-ttl is %v", ttl)
	}
	if !slices.Equal(*plugins, []string{"NodeRestriction", "AlwaysPullImages"}) {
		t.Errorf("plugins are %v", *plugins)
	}
	if !slices.Equal(*servers, []string{"http://b", "http://c"}) {
		t.Errorf("servers are %v", *servers)
	}
}

func TestEverythingWrongIsTold(t *testing.T) {
	var sets cliflag.NamedFlagSets
	sets.FlagSet("a").AddFlag(&pflag.Flag{Name: "count", Value: new(number)})
	err := parse(sets, nil, "kube-scheduler-arg", []string{"count=x", "nothing=1"})
	if err == nil || !strings.Contains(err.Error(), `no flag "nothing"`) || !strings.Contains(err.Error(), "count") {
		t.Errorf("got %v", err)
	}
}

type number struct{}

func (*number) String() string   { return "" }
func (*number) Type() string     { return "number" }
func (*number) Set(string) error { return strings.NewReader("").UnreadByte() }

func TestGiven(t *testing.T) {
	user := []string{"oidc-issuer-url=https://x", "v=1"}
	for name, want := range map[string]bool{"oidc-*": true, "v": true, "oidc": false, "anonymous-auth": false} {
		if given(user, name) != want {
			t.Errorf("%s: want %v", name, want)
		}
	}
}

func TestHealthNamesWhatIsWrong(t *testing.T) {
	h := &Health{}
	var r running
	r.set("waiting for its caches")
	h.Register("b", r.check)
	h.Register("a", (&running{}).check)
	rep := h.Report(t.Context())
	if len(rep) != 2 || !rep[0].Healthy || rep[1].Healthy || rep[1].Message != "waiting for its caches" {
		t.Errorf("got %+v", rep)
	}
}
