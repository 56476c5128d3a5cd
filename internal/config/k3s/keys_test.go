package k3s

import (
	"os"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
)

// TestEveryKey compares the table with the list of k3s' keys, and checks that each row is complete.
func TestEveryKey(t *testing.T) {
	raw, err := os.ReadFile("testdata/keys.txt")
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		if key := strings.TrimSpace(line); key != "" && key[0] != '#' {
			missing[key] = true
		}
	}
	names := map[string]string{}
	for _, k := range Keys(false).Keys {
		if !missing[k.Key] {
			t.Errorf("%s is not in testdata/keys.txt, or twice in the table", k.Key)
		}
		delete(missing, k.Key)
		switch k.Effect {
		case config.OtherKey:
			if k.To == "" || k.To == k.Key || k.Form != config.Switch && (k.Invert || k.Value != "") {
				t.Errorf("%s: the other name is %q", k.Key, k.To)
			}
		case config.NoEffect, config.Refused:
			if len(k.Reason) < 6 || strings.HasSuffix(k.Reason, ".") {
				t.Errorf("%s: the reason is %q", k.Key, k.Reason)
			}
		}
		for _, name := range append([]string{k.Short}, k.Env...) {
			if other := names[name]; other != "" && name != "" {
				t.Errorf("%s is a name of %s and of %s", name, other, k.Key)
			}
			names[name] = k.Key
		}
	}
	for key := range missing {
		t.Errorf("%s is a key of k3s and not in the table", key)
	}
}

// TestSnapshots: the command about snapshots has the names with and without etcd-, and no setting's own name twice.
func TestSnapshots(t *testing.T) {
	flags, all := Snapshots()
	if len(all.Keys) != len(Keys(false).Keys)+len(flags.Keys)-len(snapshots) {
		t.Errorf("%d rows, %d of them flags", len(all.Keys), len(flags.Keys))
	}
	seen := map[string]string{}
	for _, k := range flags.Keys {
		if k.Key == k.To || seen[k.Key] != "" {
			t.Errorf("%s: twice, or the setting's own name", k.Key)
		}
		seen[k.Key] = string(rune('0'+k.Effect)) + k.To
	}
	for key, want := range map[string]string{"s3-bucket": "1snapshot-s3-bucket", "etcd-s3-bucket": "1snapshot-s3-bucket",
		"s3": "1snapshot-s3-disable", "dir": "1snapshot-dir", "snapshot-compress": "2"} {
		if seen[key] != want {
			t.Errorf("%s: %q, want %q", key, seen[key], want)
		}
	}
}

// TestVariables: the variables of k3s are names of the settings that they set there.
func TestVariables(t *testing.T) {
	want := map[string]string{
		"K3S_URL": "server", "K3S_TOKEN": "token", "K3S_TOKEN_FILE": "token-file", "K3S_AGENT_TOKEN": "agent-token",
		"K3S_AGENT_TOKEN_FILE": "agent-token-file", "K3S_NODE_NAME": "node-name", "K3S_DATA_DIR": "data-dir",
		"K3S_RESOLV_CONF": "resolv-conf", "K3S_LB_SERVER_PORT": "lb-server-port",
		"K3S_DATASTORE_ENDPOINT": "datastore-endpoint", "K3S_DATASTORE_CAFILE": "datastore-cafile",
		"K3S_DATASTORE_CERTFILE": "datastore-certfile", "K3S_DATASTORE_KEYFILE": "datastore-keyfile",
		"K3S_CLUSTER_INIT": "cluster-init", "K3S_CLUSTER_RESET": "cluster-reset",
		"K3S_KUBECONFIG_OUTPUT": "write-kubeconfig", "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode",
		"K3S_DEBUG": "debug", "K3S_SELINUX": "selinux", "K3S_SYSTEM_DEFAULT_REGISTRY": "system-default-registry",
		"K3S_VPN_AUTH": "vpn-auth", "K3S_VPN_AUTH_FILE": "vpn-auth-file", "K3S_ROOTLESS": "rootless",
		"AWS_ACCESS_KEY_ID": "etcd-s3-access-key", "AWS_SECRET_ACCESS_KEY": "etcd-s3-secret-key",
	}
	for _, k := range Keys(false).Keys {
		for _, name := range append(k.Env, k.PartEnv...) {
			if want[name] != "" && want[name] != k.Key {
				t.Errorf("%s sets %s, want %s", name, k.Key, want[name])
			}
			delete(want, name)
		}
	}
	for name := range want {
		t.Errorf("%s is in no row", name)
	}
	if f := Keys(true); !f.NodeOnly || f.FileEnv != "K3S_CONFIG_FILE" {
		t.Errorf("%+v", f)
	}
}
