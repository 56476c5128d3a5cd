package localadmin

import (
	"context"
	"errors"
	"fmt"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/socket"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/encryption"
)

// SecretsStatus returns the status of the keys of Secrets: of the running server, or what the files of a stopped one
// hold.
func SecretsStatus(ctx context.Context, d layout.Dirs) (*encryption.Status, error) {
	s, err := server.ActionKeys.Call(ctx, d.ControlSocket(), control.Empty{})
	if errors.Is(err, socket.ErrNotRunning) {
		return encryption.FileStatus(d.EncryptionConfig())
	}
	return s, err
}

// RotateSecrets begins a rotation of the keys of Secrets in the running server, or attaches to the one that is under
// way, and calls progress with each step until it is done. The end of ctx ends only the watching.
func RotateSecrets(ctx context.Context, d layout.Dirs, r encryption.BeginRequest, progress func(line string)) error {
	p, err := server.ActionBegin.Call(ctx, d.ControlSocket(), r)
	if errors.Is(err, socket.ErrNotRunning) {
		return errors.New("umiak is not running: the API server has to rewrite everything; start it, then this again")
	}
	if err != nil {
		return err
	}
	step, waiting := "", ""
	for {
		if p.Step != step {
			progress(p.Step)
		}
		if p.Waiting != "" && p.Waiting != waiting {
			progress("waiting, and trying again: " + p.Waiting)
		}
		if p.Done {
			return nil
		}
		step, waiting = p.Step, p.Waiting
		p, err = server.ActionFollow.Call(ctx, d.ControlSocket(), encryption.FollowRequest{After: p.Revision})
		switch {
		case ctx.Err() != nil:
			progress("the rotation goes on in the server; `umiak secrets-encrypt rotate` shows its progress again")
			return ctx.Err()
		case errors.Is(err, socket.ErrNotRunning):
			return errors.New("umiak has stopped: the rotation goes on when it runs again, or on another server; `umiak secrets-encrypt status` shows it")
		case err != nil:
			return fmt.Errorf("follow the rotation, which goes on in the server: %w", err)
		}
	}
}
