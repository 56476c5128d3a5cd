package localadmin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/socket"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/backup"
)

// Snapshots saves and restores snapshots of the server.
type Snapshots struct {
	Server server.Config
	Backup backup.Config
	Etc    string // the folder of settings
	Log    *slog.Logger
}

// Save asks the running server for a snapshot, or reads the datastore of a stopped one. An empty name means
// backup.OnDemand. The error names a snapshot that was saved here and could not be uploaded; it is returned as well.
func (s Snapshots) Save(ctx context.Context, name string) (*backup.Saved, error) {
	pass, err := s.Backup.Passphrase()
	if err != nil {
		return nil, err
	}
	request := server.SaveRequest{Name: name, Passphrase: pass}
	saved, err := server.ActionSave.Call(ctx, s.Server.Dirs().ControlSocket(), request)
	if errors.Is(err, socket.ErrNotRunning) {
		saved, err = server.SaveStopped(ctx, s.Server, s.Log, name)
	}
	if err != nil {
		return nil, err
	}
	if saved.NotUploaded != "" {
		return saved, fmt.Errorf("the snapshot is saved here; it is not in the bucket yet, a running server tries again: %s", saved.NotUploaded)
	}
	return saved, nil
}

// WithBucket returns s with the settings of the bucket that a Secret holds; the server has to run for that.
func (s Snapshots) WithBucket(ctx context.Context) (Snapshots, error) {
	dirs := s.Server.Dirs()
	if s.Backup.S3.ConfigSecret == "" || !instance.Running(dirs) {
		return s, nil // without the server, opening the bucket fails and states the remedy
	}
	var err error
	s.Backup, err = s.Backup.WithSecret(ctx, backup.KubeSystem{
		Client: kubeclient.Source{Kubeconfig: dirs.AdminKubeconfig()}.Maker("umiak-snapshot"),
	})
	return s, err
}

// ForReset replaces the state of the stopped server with the snapshot of cluster-reset-restore-path, and returns the
// settings with which the server then starts as a cluster of its own. A second start with the same settings leaves the
// state alone: it would lose what was written since. The caller has locked the data directory: a process that the lock
// refuses changes nothing.
func (s Snapshots) ForReset(ctx context.Context) (server.Config, error) {
	cfg := s.Server
	done, err := s.restored()
	switch {
	case err != nil:
		return cfg, err
	case cfg.ResetRestorePath == "" && done == "":
		return cfg, nil
	case cfg.ResetRestorePath == "":
		return cfg, os.Remove(cfg.Dirs().ResetRestored())
	case cfg.ResetRestorePath == done:
		s.Log.Warn("the snapshot was restored at an earlier start and is not restored again; remove cluster-reset and "+
			"cluster-reset-restore-path from the settings", "snapshot", cfg.ResetRestorePath)
	default:
		r, err := s.replace(ctx, cfg.ResetRestorePath, cfg.ResetRestorePath)
		if err != nil {
			return cfg, fmt.Errorf("cluster-reset-restore-path: %w", err)
		}
		s.Log.Info("restored a snapshot", "snapshot", cfg.ResetRestorePath, "keys", r.Keys, "saved", r.Time, "node", r.Node,
			"former-state", r.Kept)
	}
	// What was restored is in SQLite: it moves into etcd, of which this server is the only member.
	cfg.ClusterReset, cfg.ClusterInit, cfg.Server, cfg.ResetRestorePath = false, true, "", ""
	return cfg, nil
}

// restored returns the snapshot that ForReset has restored, "" for none.
func (s Snapshots) restored() (string, error) {
	done, err := os.ReadFile(s.Server.Dirs().ResetRestored())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read which snapshot was restored: %w", err)
	}
	return string(done), nil
}

// Restore replaces the state of the stopped server with a snapshot: a file, one of the folder, or else of the bucket.
func (s Snapshots) Restore(ctx context.Context, name string) (snapshot.Restored, error) {
	release, err := instance.Acquire(s.Server.Dirs())
	if err != nil {
		return snapshot.Restored{}, fmt.Errorf("restore: %w", err)
	}
	defer release()
	done, err := s.restored() // stays: what is restored now must outlive a start with cluster-reset-restore-path as well
	if err != nil {
		return snapshot.Restored{}, err
	}
	return s.replace(ctx, name, done)
}

// replace replaces the state of the server, whose data directory is locked, with a snapshot. If mark is not empty, the
// new state records it as the snapshot that cluster-reset-restore-path has restored.
func (s Snapshots) replace(ctx context.Context, name, mark string) (r snapshot.Restored, err error) {
	pass, err := s.Backup.Passphrase()
	if err != nil {
		return r, err
	}
	dirs := s.Server.Dirs()
	file, done, err := s.Backup.Fetch(ctx, dirs, name)
	if err != nil {
		return r, err
	}
	defer done()
	var also []snapshot.File
	if mark != "" {
		also = []snapshot.File{{Name: filepath.Base(dirs.ResetRestored()), Data: []byte(mark), Mode: 0o600}}
	}
	r, err = snapshot.Restore(ctx, file, pass, dirs, s.Log, also...)
	switch {
	case errors.Is(err, snapshot.ErrEncrypted), errors.Is(err, snapshot.ErrPassphrase):
		return r, fmt.Errorf("%w; give the right one with --snapshot-passphrase-file", err)
	case errors.Is(err, snapshot.ErrPlain):
		return r, fmt.Errorf("%w: somebody else may have put it there; if you know that it is yours, restore it with --snapshot-passphrase-file ''", err)
	case err != nil:
		return r, err
	}
	// The node's data are those of the snapshot now, on whatever disk they are.
	return r, datadisk.Forget(s.Etc, dirs.Data)
}
