package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrK3s means that the data directory is that of a k3s server or agent.
var ErrK3s = errors.New("it holds the data of k3s, which umiak cannot use")

// k3sFiles are files of k3s' data directory that Umiak's does not have: of a server (keys, SQLite, etcd) and of an agent.
var k3sFiles = []string{"server/tls/server-ca.crt", "server/cred/passwd", "server/db/etcd/name", "agent/client-ca.crt",
	"agent/client-kubelet.crt", "agent/etc/containerd/config.toml"}

// refuseK3s returns an error if dir is a data directory of k3s. It changes nothing.
func refuseK3s(dir string) error {
	for _, f := range k3sFiles {
		file := filepath.Join(dir, f)
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("data-dir %s: %w (%s is there); set data-dir to another folder and leave k3s' as it is, or "+
				"run k3s-uninstall.sh when its cluster is not needed any more", dir, ErrK3s, file)
		}
	}
	return nil
}
