package joinclient

import "testing"

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"https://10.0.0.1:6443": "10.0.0.1:6443", "https://pi.local": "pi.local:6443",
		"https://[fd00::1]/": "[fd00::1]:6443",
		"http://x":           "", "10.0.0.1": "", "https://": "", "https://u:p@x": "", "https://x/y": "", "": "",
	} {
		if got, err := Address(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}
