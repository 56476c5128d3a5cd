package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

type typed struct {
	_       struct{}       `topic:"Network"`
	Bind    netip.Addr     `key:"bind-address" usage:"address"`
	IPs     []netip.Addr   `key:"node-ip" usage:"addresses"`
	Ranges  []netip.Prefix `key:"cluster-cidr" default:"10.42.0.0/16" usage:"ranges"`
	From    []Range        `key:"kubelet-port-from" usage:"ranges or addresses"`
	Port    Port           `key:"https-listen-port" default:"6443" usage:"port"`
	Ports   PortRange      `key:"service-node-port-range" default:"30000-32767" usage:"ports"`
	_       struct{}       `topic:"Files"`
	Mode    FileMode       `key:"write-kubeconfig-mode" default:"0600" usage:"mode"`
	Backend string         `key:"flannel-backend" default:"vxlan" values:"vxlan,host-gw,none" usage:"network"`
}

func TestTypedValues(t *testing.T) {
	var s typed
	err := Parse("c.yaml", `
bind-address: ""
node-ip: 10.0.0.1, fd00::1
cluster-cidr+: fd00:42::/56
kubelet-port-from: [192.168.1.7/24, 10.0.0.1]
service-node-port-range: 30000+10
write-kubeconfig-mode: 640
`, &s)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%t %v %v %v %v %v %v %s", s.Bind.IsValid(), s.IPs, s.Ranges, s.From, s.Port, s.Ports.String(),
		s.Mode, s.Backend)
	want := "false [10.0.0.1 fd00::1] [10.42.0.0/16 fd00:42::/56] [192.168.1.0/24 10.0.0.1/32] 6443 30000-30010 " +
		"0640 vxlan"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValuesThatCannotBeReadAreNamedAndLeaveTheDefault(t *testing.T) {
	for text, want := range map[string]string{
		"bind-address: eth0": "bind-address: \"eth0\" is not an IP address",
		"node-ip: [10.0.0.1, 10.0.0, x]": "node-ip: \"10.0.0\" is not an IP address\nc.yaml:1: node-ip: \"x\" is " +
			"not an IP address",
		"cluster-cidr: 10.42.0.0": "cluster-cidr: \"10.42.0.0\" is not an address range such as 10.42.0.0/16",
		"cluster-cidr: 10.42.3.0/16": "cluster-cidr: \"10.42.3.0/16\" has bits set behind the prefix, " +
			"10.42.0.0/16 is meant?",
		"kubelet-port-from: lan":   "kubelet-port-from: \"lan\" is not a range as 192.168.1.0/24",
		"https-listen-port: 70000": "https-listen-port: \"70000\" is not a port, 1 to 65535",
		"https-listen-port: 0":     "https-listen-port: \"0\" is not a port, 1 to 65535",
		"service-node-port-range: many": "service-node-port-range: \"many\" is not a range of ports such as " +
			"30000-32767",
		"service-node-port-range: 99999999": "service-node-port-range: \"99999999\" is not a range of ports such as " +
			"30000-32767",
		"write-kubeconfig-mode: rw":   "write-kubeconfig-mode: \"rw\" is not a file mode such as 0600",
		"write-kubeconfig-mode: 0400": "write-kubeconfig-mode: \"0400\" is not a file mode such as 0600",
		"flannel-backend: vxlam":      "flannel-backend: \"vxlam\" is not vxlan, host-gw or none; did you mean vxlan?",
		"flannel-backend: ''":         "flannel-backend: \"\" is not vxlan, host-gw or none",
	} {
		var s, untouched typed
		err := Parse("c.yaml", text, &s)
		collect([]any{&untouched}).setDefaults()
		if err == nil || err.Error() != "c.yaml:1: "+want || fmt.Sprint(s) != fmt.Sprint(untouched) {
			t.Errorf("%s:\ngot  %v\nwant c.yaml:1: %s\nvalues %v", text, err, want, s)
		}
	}
}

func TestHelpHasTopicsAndValues(t *testing.T) {
	var s typed
	f := collect([]any{&s}).byKey
	if f["flannel-backend"].help() != "network: vxlan, host-gw or none" || f["bind-address"].topic != "Network" ||
		f["flannel-backend"].topic != "Files" {
		t.Errorf("%q %q %q", f["flannel-backend"].help(), f["bind-address"].topic, f["flannel-backend"].topic)
	}
}

func TestReportHasOneErrorForEachMistake(t *testing.T) {
	var s typed
	load := Parse("c.yaml", "cluster-cidr: x\nhttps-listen-port: y\nno-such: 1\n", &s)
	var m Mistakes
	m.Add("cluster-cidr", "one range")
	m.AddWith("service-cidr", []string{"cluster-cidr"}, "must have the families of cluster-cidr")
	m.Add("tls-san", "%q is not a name", "a b")
	m.Join(errors.Join(fmt.Errorf("two %w in %w", errors.New("one"), errors.New("text"))), nil)
	err := Report(load, m.Err(), errors.New(`tls-san: "a b" is not a name`))
	want := strings.Join([]string{
		`c.yaml:1: cluster-cidr: "x" is not an address range such as 10.42.0.0/16`,
		`c.yaml:2: https-listen-port: "y" is not a port, 1 to 65535`,
		"c.yaml:3: no-such: no such setting; `--help` lists them",
		`tls-san: "a b" is not a name`,
		"two one in text",
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if got := Except(load, "https-listen-port"); strings.Contains(got.Error(), "c.yaml:1") ||
		strings.Count(got.Error(), "\n") != 1 {
		t.Error(got)
	}
	if Except(Parse("c.yaml", "cluster-cidr: x", &s)) != nil || Report(nil, nil) != nil {
		t.Error("an error is left")
	}
}
