package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
)

// markFile returns the file that exists while the cluster's keys are in the datastore, for commands that work on files.
// It identifies the keys in force.
func markFile(d layout.Dirs) string { return filepath.Join(d.Server(), "keys-in-datastore") }

// The contents of the mark.
const (
	markShared = "shared\n"  // the keys of the record in the datastore
	markByHand = "by hand\n" // those in the files, which were changed by force
)

// errInDatastore means that the files of one server alone must not be changed.
var errInDatastore = errors.New("this server shares its keys with others through the datastore: start all servers and run the command then, on one of them. " +
	"Where they cannot start any more, since an authority has ended: run it with --force on one server, start that one once with --cluster-reset (not with a database outside), and let the others join again")

// RotateFiles begins or finishes rotations in the files of a server that does not run. It refuses where other servers
// share the keys, unless Force is set: then the keys in the files are in force at the next start.
func RotateFiles(d layout.Dirs, r RotateRequest) (RotateResult, error) {
	_, err := os.Stat(markFile(d))
	backend, _ := datastore.Present(d.DB())
	shared := err == nil || backend == datastore.BackendEtcd
	if shared && !r.Status && !r.Force {
		return RotateResult{}, errInDatastore
	}
	p, err := pki.Open(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		return RotateResult{}, err
	}
	if !shared || r.Status {
		return rotateLocal(p, r)
	}
	return rotateByHand(d, p, r)
}

// rotateByHand marks the keys in the files as those in force before it changes them, and restores the mark where
// nothing was changed.
func rotateByHand(d layout.Dirs, p *pki.PKI, r RotateRequest) (out RotateResult, err error) {
	before, err := p.Shared()
	if err != nil {
		return out, err
	}
	mark, err := os.ReadFile(markFile(d))
	marked := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("read the mark of shared keys: %w", err)
	}
	if err := atomicfile.Write(markFile(d), []byte(markByHand), 0o600); err != nil {
		return out, err
	}
	out, err = rotateLocal(p, r)
	if err == nil {
		return out, nil
	}
	now, unread := p.Shared()
	switch {
	case unread != nil || !now.Equal(before): // some of it was done, and counts
	case marked:
		err = errors.Join(err, atomicfile.Write(markFile(d), mark, 0o600))
	default:
		err = errors.Join(err, os.Remove(markFile(d)))
	}
	return out, err
}

// rotateLocal rotates the authorities of one server alone.
func rotateLocal(p *pki.PKI, r RotateRequest) (RotateResult, error) {
	var out RotateResult
	var err error
	switch {
	case r.Status:
	case r.Finish:
		out.Finished, err = p.FinishRotation(r.Names)
	default:
		err = p.BeginRotation(r.Names, r.From)
	}
	out.UnderWay = append([]pki.Rotation{}, p.Rotations()...)
	return out, err
}
