package instance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
)

// Registry is the folder in which the nodes of this machine register their directories, one file each, so that commands
// find a node that was started with other directories than those in the settings. It is on a tmpfs.
type Registry string

type registered struct {
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
}

func (r Registry) file(d layout.Dirs) string {
	h := sha256.Sum256([]byte(filepath.Clean(d.Data)))
	return filepath.Join(string(r), hex.EncodeToString(h[:8])+".json")
}

// Add registers a node. Nodes in the default directories need no registration.
func (r Registry) Add(d layout.Dirs) error {
	if d == layout.Default {
		return nil
	}
	if err := os.MkdirAll(string(r), 0o755); err != nil {
		return fmt.Errorf("register the node: %w", err)
	}
	raw, err := json.Marshal(registered{d.Data, d.Run})
	if err != nil {
		return fmt.Errorf("register the node: %w", err)
	}
	if err := atomicfile.Write(r.file(d), raw, 0o644); err != nil {
		return fmt.Errorf("register the node: %w", err)
	}
	return nil
}

// Remove removes a node, and the folder with the last one.
func (r Registry) Remove(d layout.Dirs) error {
	if err := os.Remove(r.file(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unregister the node: %w", err)
	}
	_ = os.Remove(string(r)) // fails while other nodes are registered
	return nil
}

// List returns the registered nodes. It leaves out files that cannot be read.
func (r Registry) List() []layout.Dirs {
	entries, err := os.ReadDir(string(r))
	if err != nil {
		return nil
	}
	var out []layout.Dirs
	for _, e := range entries {
		var n registered
		raw, err := os.ReadFile(filepath.Join(string(r), e.Name()))
		if err != nil || json.Unmarshal(raw, &n) != nil || !filepath.IsAbs(n.DataDir) || !filepath.IsAbs(n.RunDir) {
			continue
		}
		out = append(out, layout.Dirs{Data: n.DataDir, Run: n.RunDir})
	}
	return out
}
