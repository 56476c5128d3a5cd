package encryption

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/server/cluster/seal"
)

// SharedKey is the key in the datastore with the configuration of the servers that share it, outside of the keys of
// kube-apiserver. It is written before any server uses it, sealed with a secret that only servers have.
const SharedKey = "/umiak/encryption"

// ErrSealed means that a configuration was sealed with another secret.
var ErrSealed = errors.New("the encryption config in the datastore is sealed with another server's keys")

// ErrElsewhere means that two servers have begun a rotation each.
var ErrElsewhere = errors.New("another server rotates the keys too; `umiak secrets-encrypt status` shows how far it is")

const purpose = "umiak encryption config"

// sealConfig encrypts a configuration.
func sealConfig(secret, raw []byte) ([]byte, error) {
	key, err := seal.Key(secret, purpose)
	if err != nil {
		return nil, err
	}
	return seal.Seal(key, raw, []byte(SharedKey))
}

// openConfig decrypts what sealConfig has encrypted.
func openConfig(secret, sealed []byte) ([]byte, error) {
	key, err := seal.Key(secret, purpose)
	if err != nil {
		return nil, err
	}
	raw, err := seal.Open(key, sealed, []byte(SharedKey))
	if errors.Is(err, seal.ErrOther) {
		return nil, ErrSealed
	}
	return raw, err
}

// Compare compares two configurations by the order of the steps of rotations: less than 0 if a is behind b. Two that
// differ at the same step are an error, ErrElsewhere.
func Compare(a, b []byte) (int, error) {
	c, err := parse(a)
	if err != nil {
		return 0, err
	}
	d, err := parse(b)
	if err != nil {
		return 0, err
	}
	order := cmp.Or(cmp.Compare(c.keys[c.newest()].number(), d.keys[d.newest()].number()), cmp.Compare(c.step(), d.step()))
	if order == 0 && !bytes.Equal(a, b) {
		return 0, ErrElsewhere
	}
	return order, nil
}

// step returns the position of the phase within a rotation.
func (c *config) step() int {
	switch c.phase() {
	case PhaseAnnounced:
		return 0
	case PhaseRewriting:
		return 1
	}
	return 2
}

// Adopt replaces the configuration in the file with one that is further. It returns the order of Compare: less than 0
// if the one in the file was behind.
func Adopt(file string, raw []byte) (int, error) {
	have, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read encryption config: %w", err)
	}
	order, err := Compare(have, raw)
	if err != nil {
		return 0, fmt.Errorf("compare encryption config %s with the one in the datastore: %w", file, err)
	}
	if order < 0 {
		err = atomicfile.Write(file, raw, 0o600)
	}
	return order, err
}
