package snapshot

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/listing"
	"github.com/umiak-io/umiak/internal/token"
)

// Suffix is the suffix of the names of snapshots.
const Suffix = ".umiak-snapshot"

// State is the position of a datastore.
type State struct {
	Backend  string
	Revision int64 // newest revision
	Epoch    int64 // see Manifest
}

// Source is a datastore that can be saved.
type Source interface {
	State(ctx context.Context) (State, error)
	// Export visits every key as of the revision, in key order. Lease in the visited keys is the TTL in seconds.
	Export(ctx context.Context, revision int64, visit func(*mvccpb.KeyValue) error) error
}

// Save describes a snapshot to be made. Run makes it.
type Save struct {
	Dir        string // target folder; created if it is missing
	Name       string // first part of the file name
	Server     string // folder of the server, see Files
	Source     Source
	Passphrase string // empty: not encrypted
	Node       string // name of this node; second part of the file name
	Version    string // of this program
	Reason     string // as in Manifest
	// OnlyChanged makes Run write no file if the newest snapshot in Dir has the same content.
	OnlyChanged bool
	Now         time.Time
}

// Entry is a file in a folder of snapshots. Err is not nil for a file that cannot be read as a snapshot.
type Entry struct {
	Info
	Path string `json:"path"`
	Err  error  `json:"-"`
}

// ValidName reports whether the name of a snapshot may begin with this.
func ValidName(name string) bool { return validName.MatchString(name) }

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Run writes the snapshot. It returns nil if OnlyChanged is set and nothing has changed.
func (c Save) Run(ctx context.Context) (*Entry, error) {
	if !validName.MatchString(c.Name) || !validName.MatchString(c.Node) {
		return nil,
			fmt.Errorf("save snapshot: the name %q is not made of letters, digits, dots, dashes and underscores",
				c.Name)
	}
	files, err := Files(c.Server)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	cluster, err := Cluster(files)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	st, err := c.Source.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if c.OnlyChanged {
		same, err := c.unchanged(ctx, st, cluster, files)
		if same || err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	m := Manifest{Cluster: cluster, Node: c.Node, Version: c.Version, Time: c.Now.UTC().Truncate(time.Second),
		Backend: st.Backend, Revision: st.Revision, Epoch: st.Epoch, Reason: c.Reason}
	e, err := c.write(ctx, m, files)
	if err != nil {
		return nil, fmt.Errorf("save snapshot in %s: %w", c.Dir, err)
	}
	return e, nil
}

// tempPattern matches files that are not complete.
const tempPattern = ".snapshot-*.tmp"

func (c Save) write(ctx context.Context, m Manifest, files []File) (_ *Entry, err error) {
	tmp, err := os.CreateTemp(c.Dir, tempPattern) // 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = tmp.Close() // on success it is closed already
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	w, err := NewWriter(tmp, m, c.Passphrase)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := w.File(f); err != nil {
			return nil, err
		}
	}
	err = c.Source.Export(ctx, m.Revision, func(kv *mvccpb.KeyValue) error {
		if isVolatile(kv.Key) {
			return nil
		}
		return w.Key(kv)
	})
	if err != nil {
		return nil, err
	}
	counts, err := w.Close()
	if err != nil {
		return nil, err
	}
	st, err := tmp.Stat()
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	m.Encrypted = c.Passphrase != ""
	e := &Entry{Info: Info{Manifest: m, Counts: counts, Size: st.Size(), Fingerprint: w.fingerprint.Sum()}}
	if e.Path, err = place(tmp.Name(),
		filepath.Join(c.Dir, c.Name+"-"+c.Node+"-"+m.Time.Format("20060102T150405Z"))); err != nil {
		return nil, err
	}
	return e, atomicfile.SyncDir(c.Dir)
}

// place moves a complete file to base, with a number if that name is taken, and returns the path.
func place(tmp, base string) (string, error) {
	for i := 0; ; i++ {
		path := base + Suffix
		if i > 0 {
			path = fmt.Sprintf("%s-%d%s", base, i, Suffix)
		}
		// A link, unlike a rename, never replaces a file. Not every file system has links.
		err := os.Link(tmp, path)
		switch {
		case err == nil:
			return path, os.Remove(tmp)
		case errors.Is(err, fs.ErrExist):
			continue
		}
		if _, err := os.Stat(path); err == nil {
			continue
		}
		return path, os.Rename(tmp, path)
	}
}

// unchanged reports whether the newest snapshot of this cluster in the folder has the content that a new one would
// have. It reads the datastore if that is needed, and writes nothing.
func (c Save) unchanged(ctx context.Context, st State, cluster string, files []File) (bool, error) {
	all, err := List(c.Dir)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(all, func(e Entry) bool { return e.Err == nil && e.Cluster == cluster })
	if i < 0 || all[i].Encrypted != (c.Passphrase != "") {
		return false, nil
	}
	sum := newFingerprint()
	for _, f := range files {
		sum.File(f)
	}
	err = c.Source.Export(ctx, st.Revision, func(kv *mvccpb.KeyValue) error {
		if !isVolatile(kv.Key) {
			sum.Key(kv)
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("compare with the last snapshot: %w", err)
	}
	return bytes.Equal(sum.Sum(), all[i].Fingerprint), nil
}

// List returns the snapshots in a folder, the newest first, then the files that only have the name of a snapshot. A
// folder that does not exist has none.
func List(dir string) ([]Entry, error) {
	names, err := listing.Match(dir, "*"+Suffix)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []Entry
	for _, p := range names {
		info, err := Inspect(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		out = append(out, Entry{Info: info, Path: p, Err: err})
	}
	Sort(out)
	return out, nil
}

// Sort sorts entries as List does: the newest first, files that are no snapshots last.
func Sort(all []Entry) {
	slices.SortFunc(all, func(a, b Entry) int {
		switch {
		case (a.Err == nil) != (b.Err == nil):
			if a.Err == nil {
				return -1
			}
			return 1
		case !a.Time.Equal(b.Time):
			return b.Time.Compare(a.Time)
		}
		return strings.Compare(b.Path, a.Path)
	})
}

// Superfluous returns the snapshots that Save made with a name and node, without the newest keep. all must be sorted.
func Superfluous(all []Entry, name, node string, keep int) (out []Entry) {
	for _, e := range all {
		if e.Err != nil || e.Node != node || !strings.HasPrefix(filepath.Base(e.Path), name+"-"+node+"-") {
			continue // damaged, or not made by this Save
		}
		if keep > 0 {
			keep--
			continue
		}
		out = append(out, e)
	}
	return out
}

// Prune removes the snapshots that Save made with a name and node, without the newest keep, and temporary files older
// than an hour. It returns the paths of the removed snapshots.
func Prune(dir, name, node string, keep int) ([]string, error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, e := range Superfluous(all, name, node, keep) {
		if err := os.Remove(e.Path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, e.Path)
	}
	left, err := listing.Match(dir, tempPattern)
	errs = append(errs, err)
	for _, p := range left {
		// A younger one may be in use.
		if st, err := os.Stat(p); err == nil && time.Since(st.ModTime()) > time.Hour {
			errs = append(errs, os.Remove(p))
		}
	}
	if len(removed) > 0 {
		errs = append(errs, atomicfile.SyncDir(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("prune snapshots: %w", err)
	}
	return removed, nil
}

// serverFiles and serverFolders are the files of a snapshot, below the folder of a server.
var (
	serverFiles   = []string{"encryption-config.yaml", "token", "agent-token"}
	serverFolders = []string{"pki", "manifests"}
)

// hidden reports whether a file is left out, as temporary files are.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// mayRestore reports whether Files takes a file with a name. Restore writes no others, whoever made the snapshot.
func mayRestore(name string) bool {
	folder, _, below := strings.Cut(name, "/")
	if !below {
		return slices.Contains(serverFiles, name)
	}
	return slices.Contains(serverFolders, folder) && !hidden(path.Base(name))
}

// Files reads the files of a snapshot from the folder of a server: the certificate authorities, the ServiceAccount
// key, the encryption configuration, the tokens and the user's manifests. It leaves out leaf certificates, which can
// be issued again.
func Files(server string) ([]File, error) {
	var out []File
	take := func(name string) error {
		path := filepath.Join(server, filepath.FromSlash(name))
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Size() > maxFile {
			return fmt.Errorf("%s has %d bytes; a snapshot takes files of at most %d", path, st.Size(), maxFile)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		out = append(out, File{Name: name, Mode: st.Mode().Perm(), Data: data})
		return nil
	}
	for _, name := range serverFiles {
		if err := take(name); err != nil {
			return nil, err
		}
	}
	for _, dir := range serverFolders {
		err := filepath.WalkDir(filepath.Join(server, dir), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() || hidden(d.Name()) {
				return err
			}
			rel, err := filepath.Rel(server, path)
			if err != nil {
				return err
			}
			if dir == "pki" && leaf(path) {
				return nil
			}
			return take(filepath.ToSlash(rel))
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// leaf reports whether a file of the PKI folder is a leaf certificate or its key.
func leaf(path string) bool {
	raw, err := os.ReadFile(strings.TrimSuffix(path, filepath.Ext(path)) + ".crt")
	if err != nil {
		return false
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return false
	}
	c, err := x509.ParseCertificate(b.Bytes)
	return err == nil && !c.IsCA
}

// Cluster returns the identity of the cluster to which the files belong: the hash of its server CA's public key.
func Cluster(files []File) (string, error) {
	for _, f := range files {
		if f.Name != "pki/server-ca.crt" {
			continue
		}
		b, _ := pem.Decode(f.Data)
		if b == nil {
			return "", errors.New("server-ca.crt holds no certificate")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return "", fmt.Errorf("server-ca.crt: %w", err)
		}
		return token.HashCA(c), nil
	}
	return "", errors.New("there is no server-ca.crt: no server has run here yet")
}
