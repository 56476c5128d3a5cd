package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/server"
)

// TestFlannelBackendsAreThoseOfTheNetwork: the setting has the values that the node's network knows.
func TestFlannelBackendsAreThoseOfTheNetwork(t *testing.T) {
	f, ok := reflect.TypeFor[server.Config]().FieldByName("FlannelBackend")
	if !ok {
		t.Fatal("there is no setting flannel-backend")
	}
	want := strings.Join([]string{network.VXLAN, network.HostGW, network.WireGuard, network.None}, ",")
	if got := f.Tag.Get("values"); got != want {
		t.Errorf("flannel-backend has the values %s, the network has %s", got, want)
	}
	if got := f.Tag.Get("default"); got != network.VXLAN {
		t.Errorf("the default is %s", got)
	}
}
