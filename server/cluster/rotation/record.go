package rotation

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/umiak-io/umiak/server/cluster/seal"
	"github.com/umiak-io/umiak/server/pki"
)

// Where the record and the reports lie in the datastore: outside what kube-apiserver looks at.
const (
	Key     = "/umiak/authorities"
	Reports = "/umiak/authorities-of/"
)

// Stage is a step of a rotation.
type Stage string

// The stages, see the package comment.
const (
	Settled   Stage = "settled"
	Announced Stage = "announced"
	Begun     Stage = "begun"
)

// ErrSealed means that the record cannot be opened with the keys of this server.
var ErrSealed = errors.New("the cluster's keys were replaced while this server was away, and it has none of those that are in force")

// Record is the stage in force.
type Record struct {
	// Epoch grows by one with each stage.
	Epoch int64
	Stage Stage
	// Begun is the epoch of the newest stage with which new ones began to sign.
	Begun int64
	// Files are those of the stage, Next of the one that follows Announced.
	Files, Next pki.Files
	// openers are the keys with which a server may open the record, by the hash of the ServiceAccount key they come
	// from.
	openers map[string][]byte
}

// stored is a Record as the datastore has it.
type stored struct {
	Epoch int64             `json:"epoch"`
	Stage Stage             `json:"stage"`
	Keys  map[string][]byte `json:"keys"` // the body's, sealed for each opener
	Body  []byte            `json:"body"`
}

type body struct {
	Begun   int64             `json:"begun"`
	Files   pki.Files         `json:"files"`
	Next    pki.Files         `json:"next,omitempty"`
	Openers map[string][]byte `json:"openers"`
}

const (
	purpose   = "umiak authorities"
	keyFile   = "service-account.key"
	oldPublic = "service-account-old.pub"
)

// opener is the key that a server derives from its ServiceAccount key, and the name it goes by.
func opener(files pki.Files) (id string, key []byte, err error) {
	if key, err = seal.Key(files[keyFile], purpose); err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8]), key, nil
}

// First is the record of a cluster that has none.
func First(files pki.Files) *Record {
	r := &Record{Epoch: 1, Stage: Settled, Files: files}
	if len(files.Under()) > 0 {
		r.Stage = Begun
	}
	return r
}

// then is the record that follows r.
func (r *Record) then(stage Stage, files, next pki.Files) *Record {
	return &Record{Epoch: r.Epoch + 1, Stage: stage, Files: files, Next: next, openers: maps.Clone(r.openers)}
}

// encode seals a record: for all who have a ServiceAccount key of its stages and, as long as that is being replaced,
// for who has an old one.
func (r *Record) encode() ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("seal the authorities: %w", err) }
	openers := map[string][]byte{}
	if r.Stage != Settled || r.Files[oldPublic] != nil {
		maps.Copy(openers, r.openers)
	}
	for _, files := range []pki.Files{r.Files, r.Next} {
		if files == nil {
			continue
		}
		id, key, err := opener(files)
		if err != nil {
			return fail(err)
		}
		openers[id] = key
	}
	raw, err := json.Marshal(body{Begun: r.Begun, Files: r.Files, Next: r.Next, Openers: openers})
	if err != nil {
		return fail(err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	out := stored{Epoch: r.Epoch, Stage: r.Stage, Keys: map[string][]byte{}}
	if out.Body, err = seal.Seal(key, raw, out.beside()); err != nil {
		return fail(err)
	}
	for id, k := range openers {
		if out.Keys[id], err = seal.Seal(k, key, []byte(Key)); err != nil {
			return fail(err)
		}
	}
	return json.Marshal(out)
}

func (s stored) beside() []byte { return fmt.Appendf(nil, "%s %d %s", Key, s.Epoch, s.Stage) }

// decode opens a record with the ServiceAccount key among files.
func decode(raw []byte, files pki.Files) (*Record, error) {
	fail := func(err error) (*Record, error) {
		return nil, fmt.Errorf("read %s in the datastore: %w", Key, err)
	}
	var s stored
	if err := json.Unmarshal(raw, &s); err != nil {
		return fail(err)
	}
	id, mine, err := opener(files)
	if err != nil {
		return fail(err)
	}
	key, err := seal.Open(mine, s.Keys[id], []byte(Key))
	if errors.Is(err, seal.ErrOther) {
		return &Record{Epoch: s.Epoch, Stage: s.Stage}, ErrSealed
	}
	if err != nil {
		return fail(err)
	}
	if raw, err = seal.Open(key, s.Body, s.beside()); err != nil {
		return fail(err)
	}
	var b body
	if err := json.Unmarshal(raw, &b); err != nil {
		return fail(err)
	}
	return &Record{Epoch: s.Epoch, Stage: s.Stage, Begun: b.Begun, Files: b.Files, Next: b.Next, openers: b.Openers},
		nil
}
