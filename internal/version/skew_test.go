package version

import "testing"

func TestMinor(t *testing.T) {
	for in, want := range map[string]int{"v1.37.2+umiak1": 37, "v1.38.0-rc.1": 38, "v1.5.0": 5, "v2.0.0": -1,
		"1.37.2": -1, "v1.37": -1, "v1.37.2\n": -1, "v1.37.2+a/b": -1, "": -1} {
		got, err := Minor(in)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
}

func TestSkew(t *testing.T) {
	for _, c := range []struct {
		joining, server string
		node, beside    bool
	}{
		{"v1.37.2+umiak1", "v1.37.9+umiak3", true, true},
		{"v1.39.0+umiak1", "v1.37.2+umiak1", false, false},
		{"v1.38.0-rc.1", "v1.37.2+umiak1", false, true},
		{"v1.36.0", "v1.37.2", true, true},
		{"v1.35.0", "v1.37.2", true, false},
		{"v1.34.9", "v1.37.0", true, false},
		{"v1.33.9", "v1.37.0", false, false},
		{"", "v1.37.0", true, true},
		{"v1.37.0", "", true, true},
		{"unknown", "v1.37.0", true, true},
	} {
		if err := NodeFits(c.joining, c.server); (err == nil) != c.node {
			t.Errorf("node %s, server %s: %v", c.joining, c.server, err)
		}
		if err := ServerFits(c.joining, c.server); (err == nil) != c.beside {
			t.Errorf("server %s beside %s: %v", c.joining, c.server, err)
		}
	}
	for pair, want := range map[[2]string]bool{
		{"3.7.3", "3.7.0"}: true, {"3.8.0", "3.7.3"}: true, {"3.9.0", "3.7.3"}: false, {"3.6.9", "3.7.0"}: false,
		{"4.7.0", "3.7.0"}: false, {"", "3.7.0"}: true, {"3.7.0", ""}: true,
	} {
		if err := EtcdFits(pair[0], pair[1]); (err == nil) != want {
			t.Errorf("etcd %s beside %s: %v", pair[0], pair[1], err)
		}
	}
}
