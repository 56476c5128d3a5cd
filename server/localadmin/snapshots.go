package localadmin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/datadisk"
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
	saved := &backup.Saved{}
	request := server.SaveRequest{Name: name, Passphrase: pass}
	err = control.Call(ctx, s.Server.Dirs().ControlSocket(), server.ActionSave, request, saved)
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

// Restore replaces the state of the stopped server with a snapshot: a file, one of the folder, or else of the bucket.
func (s Snapshots) Restore(ctx context.Context, name string) (r snapshot.Restored, err error) {
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
	r, err = snapshot.Restore(ctx, file, pass, dirs, s.Log)
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
