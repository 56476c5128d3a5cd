package instance

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
)

// files lists all files and folders below dir.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		all = append(all, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAcquireRefusesDataOfK3s(t *testing.T) {
	for name, there := range map[string][]string{
		"SQLite":        {"server/db/state.db", "server/tls/server-ca.crt", "server/cred/passwd", "server/token"},
		"etcd":          {"server/db/etcd/name", "server/db/etcd/member/snap/db"},
		"agent":         {"agent/client-kubelet.crt", "agent/serving-kubelet.crt"},
		"old agent":     {"agent/client-ca.crt"},
		"stopped agent": {"agent/etc/containerd/config.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d := layout.Dirs{Data: filepath.Join(root, "data"), Run: filepath.Join(root, "run")}
			for _, f := range there {
				file := filepath.Join(d.Data, f)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			before := files(t, root)
			if _, err := Acquire(d); !errors.Is(err, ErrK3s) {
				t.Errorf("acquire: %v", err)
			}
			if after := files(t, root); !slices.Equal(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
	// What a server of Umiak has is none of these.
	d := layout.Dirs{Data: t.TempDir()}
	for _, file := range []string{filepath.Join(d.DB(), "state.db"), filepath.Join(d.ServerPKI(), "server-ca.crt"),
		filepath.Join(d.DB(), "etcd", "member", "wal", "0.wal"), d.ServerToken(), filepath.Join(d.AgentPKI(), "kubelet.crt")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := refuseK3s(d.Data); err != nil {
		t.Error(err)
	}
}
