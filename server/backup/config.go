package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/backup/s3"
)

// Config holds the settings.
type Config struct {
	Schedule       string `key:"snapshot-schedule-cron" default:"0 */12 * * *" usage:"when to save the datastore, in cron's notation; nothing is written when nothing changed"`
	Retention      int    `key:"snapshot-retention" default:"5" usage:"how many scheduled snapshots to keep"`
	Name           string `key:"snapshot-name" default:"scheduled" usage:"first part of the names of scheduled snapshots"`
	Dir            string `key:"snapshot-dir" usage:"folder for snapshots (default: server/snapshots in data-dir)"`
	S3Unencrypted  bool   `key:"snapshot-s3-unencrypted" usage:"keep snapshots in the bucket that no passphrase encrypts: who reads it has the cluster"`
	PassphraseFile string `key:"snapshot-passphrase-file" secret:"file" usage:"file with the passphrase that encrypts snapshots (default: not encrypted)"`
	Disable        bool   `key:"disable-snapshots" usage:"make no scheduled snapshots"`
	S3             s3.Config
}

// Validate returns all invalid settings.
func (c Config) Validate() error {
	errs := []error{c.S3.Validate()}
	if _, err := parse(c.Schedule); err != nil {
		errs = append(errs, fmt.Errorf("snapshot-schedule-cron: %q: %w; five fields such as %q are meant", c.Schedule,
			err, "0 */12 * * *"))
	}
	if c.Retention < 1 {
		errs = append(errs, fmt.Errorf(
			"snapshot-retention: %d: at least one has to be kept; set disable-snapshots to have none", c.Retention))
	}
	if !snapshot.ValidName(c.scheduledName()) || c.Name == OnDemand {
		errs = append(errs, fmt.Errorf("snapshot-name: %q is not a name: letters, digits, dots, dashes and underscores, "+
			"and not %s", c.Name, OnDemand))
	}
	for _, p := range []struct{ key, path string }{{"snapshot-dir", c.Dir},
		{"snapshot-passphrase-file", c.PassphraseFile}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", p.key, p.path))
		}
	}
	return errors.Join(errs...)
}

// scheduledName begins the names of scheduled snapshots, which are pruned.
func (c Config) scheduledName() string { return cmp.Or(c.Name, Scheduled) }

// WithSecret returns the settings with those of snapshot-s3-config-secret in them, if it is set.
func (c Config) WithSecret(ctx context.Context, from s3.Objects) (_ Config, err error) {
	c.S3, err = c.S3.Resolve(ctx, from)
	return c, err
}

// Folder is the folder of snapshots.
func (c Config) Folder(d layout.Dirs) string {
	if c.Dir != "" {
		return c.Dir
	}
	return filepath.Join(d.Server(), "snapshots")
}

// maxPassphrase bounds the passphrase file in bytes.
const maxPassphrase = 4096

// Passphrase reads the passphrase, without the newline at its end. It is "" if none is configured.
func (c Config) Passphrase() (string, error) {
	if c.PassphraseFile == "" {
		return "", nil
	}
	st, err := os.Stat(c.PassphraseFile)
	if err == nil && st.Size() > maxPassphrase {
		err = fmt.Errorf("%s has %d bytes, a passphrase at most %d", c.PassphraseFile, st.Size(), maxPassphrase)
	}
	var raw []byte
	if err == nil {
		raw, err = os.ReadFile(c.PassphraseFile)
	}
	if err != nil {
		return "", fmt.Errorf("snapshot-passphrase-file: %w", err)
	}
	p := strings.TrimRight(string(raw), "\r\n")
	if p == "" {
		return "", fmt.Errorf("snapshot-passphrase-file: %s is empty", c.PassphraseFile)
	}
	return p, nil
}
