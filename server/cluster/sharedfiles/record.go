package sharedfiles

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/passphrase"
	"github.com/umiak-io/umiak/internal/token"
)

// Key is where the Record lies in the datastore: outside what kube-apiserver looks at.
const Key = "/umiak/servers"

// maxSealed bounds what is read of the files.
const maxSealed = 1 << 20

// Record is the record of the cluster in the datastore.
type Record struct {
	// CA is the hash of the server CA, which identifies the cluster.
	CA string `json:"ca"`
	// Settings are those that all servers must have alike.
	Settings []joinwire.Setting `json:"settings"`
	// Sealed are the files of Collect without the tokens, encrypted with the secret of the server token by age's
	// scrypt; nothing before the first server has one.
	Sealed []byte `json:"sealed,omitempty"`
	// Seal changes with the files and the secret. Only who has the files can make it.
	Seal string `json:"seal,omitempty"`
}

// errWrongToken means that a token is not the one that the files were sealed with.
var errWrongToken = errors.New("this is not the cluster's server token")

// Parse reads a Record.
func Parse(raw []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("read %s in the datastore: %w", Key, err)
	}
	return r, nil
}

// lasting returns the files without the tokens, which not all servers have, and without each server's record of its own
// starts.
func lasting(files []joinwire.File) []joinwire.File {
	return slices.DeleteFunc(slices.Clone(files), func(f joinwire.File) bool {
		return f.Name == "token" || f.Name == "agent-token" || f.Name == "pki/rotations.json"
	})
}

// SealOf is the Seal of files with a secret.
func SealOf(files []joinwire.File, secret string) (string, error) {
	var key []byte
	for _, f := range files {
		if f.Name == "pki/service-account.key" {
			sum := sha256.Sum256(f.Data)
			key = sum[:]
		}
	}
	if key == nil {
		return "", errors.New("seal the cluster's keys: pki/service-account.key is missing")
	}
	raw, err := json.Marshal(lasting(files))
	if err != nil {
		return "", fmt.Errorf("seal the cluster's keys: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(raw)
	mac.Write([]byte(secret))
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// Put seals files with a secret.
func (r *Record) Put(files []joinwire.File, secret string) error {
	fail := func(err error) error { return fmt.Errorf("seal the cluster's keys: %w", err) }
	seal, err := SealOf(files, secret)
	if err != nil {
		return err
	}
	// A secret that was made has 160 bits: guessing it is hopeless at any cost of one guess.
	factor := passphrase.Least
	if !token.Made(secret) {
		factor = passphrase.Suitable()
	}
	var out bytes.Buffer
	w, err := passphrase.Encrypt(&out, secret, factor)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(json.NewEncoder(w).Encode(lasting(files)), w.Close()); err != nil {
		return fail(err)
	}
	r.Sealed, r.Seal = out.Bytes(), seal
	return nil
}

// Files opens what Put has sealed.
func (r Record) Files(secret string) ([]joinwire.File, error) {
	fail := func(err error) ([]joinwire.File, error) { return nil, fmt.Errorf("open the cluster's keys: %w", err) }
	in, err := passphrase.Decrypt(bytes.NewReader(r.Sealed), secret)
	if errors.Is(err, passphrase.ErrWrong) {
		return fail(errWrongToken)
	}
	if err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxSealed))
	if err != nil {
		return fail(err)
	}
	var out []joinwire.File
	if err := json.Unmarshal(raw, &out); err != nil {
		return fail(err)
	}
	return out, nil
}
