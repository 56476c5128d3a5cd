package localadmin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/socket"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/pki"
)

// RequireRoot refuses other users at once; a file or a socket would give a less helpful error later.
func RequireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this is for root: keys are readable by root only")
	}
	return nil
}

// RequireServer returns an error where no server has run in the directories.
func RequireServer(d layout.Dirs) error {
	if _, err := os.Stat(d.ServerPKI()); err != nil {
		return fmt.Errorf("there is no server in %s: run this on a server, after its first start", d.Data)
	}
	return nil
}

// Renewed is the result of Renew. One of the two is set.
type Renewed struct {
	*server.RenewResult // by the running server
	// names of certificates that a stopped server issues when it starts
	AtNextStart []string `json:"atNextStart,omitempty"`
}

// Renew renews certificates of the server, all if there are no names. newKeys makes new keys as well, for which the
// server has to be stopped.
func Renew(ctx context.Context, d layout.Dirs, names []string, newKeys bool) (Renewed, error) {
	if !newKeys {
		out, err := server.ActionRenew.Call(ctx, d.ControlSocket(), server.RenewRequest{Names: names})
		if !errors.Is(err, socket.ErrNotRunning) {
			return Renewed{RenewResult: &out}, err
		}
	}
	done, err := removeForRenewal(d, names, newKeys)
	return Renewed{AtNextStart: done}, err
}

// removeForRenewal removes certificates of a stopped server, which issues them when it starts.
func removeForRenewal(d layout.Dirs, names []string, newKeys bool) (done []string, err error) {
	release, err := instance.Acquire(d)
	if err != nil {
		return nil, fmt.Errorf("renew certificates of a umiak that does not run: %w", err)
	}
	defer release()
	list, err := certfiles.Inspect(d, time.Now(), 0)
	if err != nil {
		return nil, err
	}
	var known, files []string
	for _, e := range list {
		// Only what lies beside its key can be issued again, and never a CA.
		key := strings.TrimSuffix(e.File, ".crt") + ".key"
		if e.CA || filepath.Ext(e.File) != ".crt" || slices.Contains(known, e.Name) {
			continue
		}
		if _, err := os.Stat(key); err != nil {
			continue
		}
		known = append(known, e.Name)
		if len(names) > 0 && !slices.Contains(names, e.Name) {
			continue
		}
		files = append(files, e.File)
		if newKeys {
			files = append(files, key)
		}
		done = append(done, e.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no certificate %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// RotateCA begins or finishes rotations of authorities. running reports whether the running server did it, rather than
// this process on the files of a stopped one. Without Force it refuses to finish while something in the cluster needs
// the old ones.
func RotateCA(ctx context.Context, d layout.Dirs, r cluster.RotateRequest) (out cluster.RotateResult, running bool,
	err error) {
	if r.Finish && !r.Force && instance.Running(d) {
		api, err := kubeclient.Source{Kubeconfig: d.AdminKubeconfig()}.Client("umiak-certificate", 0)
		if err != nil {
			return out, false, err
		}
		if err := clientsReady(ctx, api, d, r.Names); err != nil {
			return out, false, err
		}
	}
	out, err = server.ActionRotate.Call(ctx, d.ControlSocket(), r)
	if !errors.Is(err, socket.ErrNotRunning) {
		return out, true, withRemedy(err)
	}
	release, err := instance.Acquire(d)
	if err != nil {
		return out, false, fmt.Errorf("umiak runs but does not answer: %w", err)
	}
	defer release()
	out, err = cluster.RotateFiles(d, r)
	return out, false, withRemedy(err)
}

// withRemedy adds what to do to an error of a rotation. The errors of a running server arrive as text.
func withRemedy(err error) error {
	if err == nil {
		return nil
	}
	switch s := err.Error(); {
	case strings.Contains(s, pki.ErrNoRestart.Error()):
		return fmt.Errorf("%w: `systemctl restart umiak` (pods run on), then this again", err)
	case strings.Contains(s, "goes on with it"):
	case strings.Contains(s, pki.ErrUnderWay.Error()):
		return fmt.Errorf("%w: restart umiak if that was not done, then `umiak certificate rotate-ca --finish`", err)
	}
	return err
}
