package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCNIConf(t *testing.T) {
	const ours = `{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
		{"type": "flannel", "delegate": {"hairpinMode": true, "forceAddress": true, "isDefaultGateway": true}},
		{"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}`
	ranges := []netip.Prefix{netip.MustParsePrefix("10.42.3.0/24")}
	render := func(text string) (string, error) {
		file := filepath.Join(t.TempDir(), "cni.conflist")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		conf, err := ReadCNIConf(file)
		if err != nil {
			return "", err
		}
		raw, err := (&Network{cfg: Config{CNI: conf}}).renderConf(ranges, 1450, true)
		return string(raw), err
	}
	none, err := (&Network{}).renderConf(ranges, 1450, true)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := render(ours); err != nil || got != string(none) {
		t.Errorf("flannel's own file: %s, %v", got, err)
	}
	got, err := render(`{"plugins": [{"type": "flannel", "delegate": {"hairpinMode": false, "promiscMode": true, "mtu": 1400}}]}`)
	for _, want := range []string{`"hairpinMode": false`, `"promiscMode": true`, `"mtu": 1400`, `"type": "portmap"`} {
		if err != nil || !strings.Contains(got, want) || strings.Contains(got, "bandwidth") {
			t.Errorf("want %s, got %s, %v", want, got, err)
		}
	}
	for text, want := range map[string]string{
		`{"plugins": [{"type": "flannel"}, {"type": "tuning"}]}`:              `there is no plugin "tuning"`,
		`{"plugins": [{"type": "portmap"}]}`:                                  "no plugin of type flannel",
		`{"plugins": [{"type": "flannel", "delegate": {"bridge": "x"}}]}`:     "delegate.bridge: it cannot be set",
		`{"plugins": [{"type": "flannel", "delegate": {"mtu": 9}}]}`:          "delegate.mtu: 9 is out of bounds",
		`{"plugins": [{"type": "flannel", "delegate": {"forceAddress": 0}}]}`: "delegate.forceAddress: it is always true",
		`{"type": "flannel"}`: "not a CNI configuration list",
	} {
		if _, err := render(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
