// Package nodename determines the name of this machine's node and stores it. A machine that has joined with a name
// keeps it, even if its host name changes, because with a second Node its containers would be killed and created
// again.
//
// The commands that run a node call Claim once; other callers use Find. It imports internal/.
package nodename

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// MaxLength is the maximum length of a name, which is the value of a label of the Node.
const MaxLength = validation.LabelValueMaxLength

// Name is the name of a node.
type Name struct {
	Name string
	// Remark explains to a person a name that is neither the one in the settings nor the host name; else it is empty.
	Remark string
}

// Finder finds the name of the node with the directories Dirs.
type Finder struct {
	Dirs layout.Dirs
	// Set is the setting node-name; empty for the host name.
	Set string
	// WithID appends a random suffix to the name of a machine that has not joined yet, for machines that are made from
	// one image with one host name.
	WithID bool
	// Host returns the host name; nil means os.Hostname.
	Host func() (string, error)
}

// Find returns the name that the node has, or would get if it started now. It writes nothing.
func (f Finder) Find() (Name, error) {
	kept, err := f.stored()
	if err != nil {
		return Name{}, err
	}
	if f.WithID && kept != "" && f.hasID(kept) {
		return Name{Name: kept}, nil
	}
	if f.Set != "" {
		if f.WithID && (kept == "" || kept != f.Set && !f.joined()) {
			n := Name{Name: f.Set + newID()}
			return n, check("node-name: with with-node-id, ", n.Name)
		}
		if kept != "" && kept != f.Set && f.joined() {
			return Name{}, fmt.Errorf("node-name: this machine has joined as node %q and cannot be %q: set "+
				"node-name to %s, or leave it out. To rename it, stop umiak, "+
				"run `umiak cleanup`, write %s into %s, start it, and delete the Node %s", kept, f.Set, kept, f.Set,
				f.Dirs.NodeName(), kept)
		}
		return Name{Name: f.Set}, check("node-name: ", f.Set)
	}
	host, hostErr := f.host()
	switch {
	case kept != "":
		n := Name{Name: kept}
		if host != kept {
			n.Remark = fmt.Sprintf("this node stays %s, the name with which it joined; the host name is %q now", kept,
				host)
		}
		return n, nil
	case hostErr != nil:
		return Name{}, fmt.Errorf("find the host name (set node-name): %w", hostErr)
	case distinctive(host) && f.WithID:
		n := Name{Name: host + newID()}
		return n, check("node-name: the host name with with-node-id, ", n.Name)
	case distinctive(host):
		return Name{Name: host}, check("node-name: the host name ", host)
	}
	n := Name{Name: "node" + newID()}
	n.Remark = fmt.Sprintf("this node is %s from now on, because the host name is %q, which other machines may have "+
		"as well; set node-name before the first start for another name", n.Name, host)
	return n, nil
}

// newID returns a dash and eight random digits.
func newID() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return "-" + hex.EncodeToString(b)
}

// hasID reports whether a stored name is one that WithID has made: the name of the settings and a suffix. Without a
// name in the settings any name with a suffix is, since the host name may have changed.
func (f Finder) hasID(kept string) bool {
	base, id := kept[:max(0, len(kept)-len(newID()))], kept[max(0, len(kept)-len(newID())):]
	_, err := hex.DecodeString(strings.TrimPrefix(id, "-"))
	return base != "" && strings.HasPrefix(id, "-") && err == nil && (f.Set == "" || f.Set == base)
}

// Claim is Find for a node that starts: it also stores the name. If that fails, for instance because the disk is
// full, it returns the name with the error. The caller must have locked the data directory.
func (f Finder) Claim() (Name, error) {
	n, err := f.Find()
	if err != nil {
		return Name{}, err
	}
	line := n.Name + "\n"
	if old, err := os.ReadFile(f.Dirs.NodeName()); err == nil && string(old) == line {
		return n, nil
	}
	if err := atomicfile.Write(f.Dirs.NodeName(), []byte(line), 0o644); err != nil {
		return n, fmt.Errorf("store the node's name: %w", err)
	}
	return n, nil
}

// joined reports whether the name is in use: the node has its certificate, or the server its state. Before that, the
// name can be changed, for instance because the cluster has refused it.
func (f Finder) joined() bool {
	for _, p := range []string{f.certificate(), f.Dirs.DB()} {
		if _, err := os.Stat(p); err == nil {
			return true
		}
	}
	return false
}

func (f Finder) certificate() string { return filepath.Join(f.Dirs.AgentPKI(), "kubelet-client.crt") }

func (f Finder) host() (string, error) {
	get := f.Host
	if get == nil {
		get = os.Hostname
	}
	h, err := get()
	return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(h), ".")), err
}

// distinctive reports whether a host name distinguishes this machine from others.
func distinctive(host string) bool {
	first, _, _ := strings.Cut(host, ".")
	return !slices.Contains([]string{"", "(none)", "localhost", "localhost4", "localhost6"}, first)
}

// check returns an error if name cannot be the name of a node. what is put before the name in the error.
func check(what, name string) error {
	if len(name) > MaxLength {
		return fmt.Errorf("%s%q has %d characters, and %d is the limit, because it becomes the value of a label; "+
			"set node-name to a shorter one", what, name, len(name), MaxLength)
	}
	if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
		return fmt.Errorf("%s%q cannot be a node's: %s", what, name, strings.Join(e, ", "))
	}
	return nil
}

// stored returns the stored name of this machine's node, empty if there is none.
func (f Finder) stored() (string, error) {
	raw, err := os.ReadFile(f.Dirs.NodeName())
	switch {
	case err == nil:
		name := strings.TrimSpace(string(raw))
		if name == "" {
			return "", nil
		}
		return name, check(f.Dirs.NodeName()+": ", name)
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	// A node that joined with a release without this file has the name in its certificate.
	raw, err = os.ReadFile(f.certificate())
	if err != nil {
		return "", nil //nolint:nilerr // the node has not joined, or joins again
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return "", nil
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return "", nil //nolint:nilerr // as above
	}
	name, _ := strings.CutPrefix(c.Subject.CommonName, wellknown.NodeUserPrefix)
	return name, nil
}
