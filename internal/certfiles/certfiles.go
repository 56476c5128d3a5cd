package certfiles

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/listing"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/output"
)

// How long what umiak issues lives. The last third is for renewal.
const (
	LeafLifetime  = 90 * 24 * time.Hour
	AdminLifetime = 365 * 24 * time.Hour // people copy the administrator's kubeconfig to their own machines
)

// limit is the most bytes of a file that is read.
const limit = 1 << 20

// Certificate is one in one file.
type Certificate struct {
	Name    string    `json:"name"`
	File    string    `json:"file"`
	CA      bool      `json:"ca"`
	Subject string    `json:"subject,omitempty"`
	Issuer  string    `json:"issuer,omitempty"`
	Ends    time.Time `json:"ends,omitzero"`
	Days    int       `json:"daysLeft"`
	// Renews is the time at which a running umiak renews the certificate; zero if it does not.
	Renews time.Time `json:"renews,omitzero"`
	UsedBy string    `json:"usedBy,omitempty"`
	// State is "ok", "ends soon", "ended", "being replaced" or "unreadable".
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

// Fine reports whether the certificate needs no action.
func (c Certificate) Fine() bool { return c.State == StateOK || c.State == StateOld }

// States of a certificate.
const (
	StateOK         = "ok"
	StateSoon       = "ends soon"
	StateEnded      = "ended"
	StateOld        = "being replaced" // an old root that is trusted until the rotation is finished
	StateUnreadable = "unreadable"
)

// use describes the purpose of a file.
type use struct {
	usedBy   string
	ca       bool
	lifetime time.Duration // of a leaf that umiak renews
}

// server lists the files of the control plane, agent those of a node.
var (
	server = map[string]use{
		"server-ca.crt":          {usedBy: "trusted by all for the API server and kubelets", ca: true},
		"client-ca.crt":          {usedBy: "trusted by the API server and kubelets for users and components", ca: true},
		"request-header-ca.crt":  {usedBy: "trusted by aggregated API servers for the API server", ca: true},
		"etcd-ca.crt":            {usedBy: "trusted by members of an embedded etcd", ca: true},
		"apiserver.crt":          {usedBy: "API server, serving", lifetime: LeafLifetime},
		"kubelet-client.crt":     {usedBy: "API server, towards kubelets", lifetime: LeafLifetime},
		"front-proxy.crt":        {usedBy: "API server, towards aggregated API servers", lifetime: LeafLifetime},
		"controller-manager.crt": {usedBy: "controller manager, towards the API server", lifetime: LeafLifetime},
		"scheduler.crt":          {usedBy: "scheduler, towards the API server", lifetime: LeafLifetime},
		"server.crt":             {usedBy: "umiak's own work, towards the API server", lifetime: LeafLifetime},
		"admin.crt":              {usedBy: "umiak kubectl and admin.kubeconfig", lifetime: AdminLifetime},
	}
	agent = map[string]use{
		"server-ca.crt":                   {usedBy: "trusted by this node for the API server", ca: true},
		"client-ca.crt":                   {usedBy: "trusted by this node's kubelet for who asks it", ca: true},
		nodecerts.KubeletClient + ".crt":  {usedBy: "kubelet, towards the API server", lifetime: LeafLifetime},
		nodecerts.KubeletServing + ".crt": {usedBy: "kubelet, serving", lifetime: LeafLifetime},
		nodecerts.AgentClient + ".crt":    {usedBy: "network, proxy and DNS of this node", lifetime: LeafLifetime},
	}
)

// Inspect returns all certificates under the data directory. One that expires within warn is in StateSoon.
func Inspect(dirs layout.Dirs, now time.Time, warn time.Duration) ([]Certificate, error) {
	var out []Certificate
	for _, place := range []struct {
		prefix, dir string
		uses        map[string]use
	}{{"", dirs.ServerPKI(), server}, {"node ", dirs.AgentPKI(), agent}} {
		files, err := listing.Match(place.dir, "*.crt")
		if err != nil {
			return nil, fmt.Errorf("list certificates (run this as root): %w", err)
		}
		for _, f := range files {
			base := filepath.Base(f)
			if strings.HasSuffix(base, "-signer.crt") || strings.HasSuffix(base, "-old.crt") {
				continue // the file of the CA has the same certificates
			}
			out = append(out, file(place.prefix+strings.TrimSuffix(base, ".crt"), f, place.uses[base])...)
		}
	}
	out = append(out, kubeconfig("admin.kubeconfig", dirs.AdminKubeconfig())...)
	for i := range out {
		out[i].judge(now, warn)
	}
	slices.SortStableFunc(out, func(a, b Certificate) int { return order(a) - order(b) })
	if len(out) == 0 {
		return nil, fmt.Errorf("there are no certificates below %s: umiak has not run with this data-dir yet",
			dirs.Data)
	}
	return out, nil
}

// order returns the sort key: CAs first, those of the node last.
func order(c Certificate) int {
	n := 0
	if strings.HasPrefix(c.Name, "node ") {
		n = 2
	}
	if !c.CA {
		n++
	}
	return n
}

// judge sets State and Days.
func (c *Certificate) judge(now time.Time, warn time.Duration) {
	if c.Error != "" {
		c.State = StateUnreadable
		return
	}
	c.Days = int(c.Ends.Sub(now).Hours() / 24)
	switch {
	case c.State == StateOld:
	case now.After(c.Ends):
		c.State = StateEnded
	case c.Ends.Before(now.Add(warn)):
		c.State = StateSoon
	default:
		c.State = StateOK
	}
}

// file returns the leaf certificate in a file, or all roots in the file of a CA.
func file(name, path string, u use) []Certificate {
	certs, err := read(path)
	if err != nil {
		return []Certificate{{Name: name, File: path, UsedBy: u.usedBy, CA: u.ca, Error: err.Error()}}
	}
	if !certs[0].IsCA {
		certs = certs[:1] // the others are its issuers
	}
	var out []Certificate
	for i, c := range certs {
		e := Certificate{Name: name, File: path, CA: c.IsCA, Subject: c.Subject.String(), Issuer: c.Issuer.String(),
			Ends: c.NotAfter.UTC(), UsedBy: u.usedBy}
		if i > 0 {
			e.State = StateOld
		}
		if u.lifetime > 0 {
			e.Renews = e.Ends.Add(-u.lifetime / 3)
		}
		out = append(out, e)
	}
	return out
}

// kubeconfig returns the certificate that is embedded in a kubeconfig. It is a copy and may be out of date.
func kubeconfig(name, path string) []Certificate {
	e := Certificate{Name: name, File: path, UsedBy: "umiak kubectl, and copies of it"}
	fail := func(err error) []Certificate {
		e.Error = err.Error()
		return []Certificate{e}
	}
	raw, err := ReadSmall(path, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	var k struct {
		Users []struct {
			User struct {
				Data []byte `json:"client-certificate-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(raw, &k); err != nil {
		return fail(errors.New("not a kubeconfig")) // the parser's error might quote a private key
	}
	if len(k.Users) == 0 || len(k.Users[0].User.Data) == 0 {
		return nil
	}
	certs, err := parse(k.Users[0].User.Data)
	if err != nil {
		return fail(err)
	}
	c := certs[0]
	e.Subject, e.Issuer, e.Ends = c.Subject.String(), c.Issuer.String(), c.NotAfter.UTC()
	e.Renews = e.Ends.Add(-AdminLifetime / 3)
	return []Certificate{e}
}

// ReadSmall reads a file of at most limit bytes; a larger one is an error.
func ReadSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return raw, err
}

func read(path string) ([]*x509.Certificate, error) {
	raw, err := ReadSmall(path, limit)
	if err != nil {
		return nil, err
	}
	return parse(raw)
}

// parse returns at least one certificate or an error.
func parse(raw []byte) (out []*x509.Certificate, err error) {
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}

// Print writes the list as a table.
func Print(w io.Writer, list []Certificate) error {
	t := output.NewTable(w, "NAME", "KIND", "STATE", "ENDS", "DAYS", "RENEWED BY ITSELF", "SUBJECT", "USED BY")
	for _, c := range list {
		kind, renews := "leaf", "-"
		if c.CA {
			kind = "CA"
		}
		if !c.Renews.IsZero() {
			renews = c.Renews.Format(time.DateOnly)
		}
		if c.Error != "" {
			fmt.Fprintf(t, "%s\t%s\t%s\t\t\t\t%s\t%s\n", c.Name, kind, c.State, c.Error, c.UsedBy)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", c.Name, kind, c.State, c.Ends.Format(time.DateOnly), c.Days,
			renews, c.Subject, c.UsedBy)
	}
	return t.Flush()
}
