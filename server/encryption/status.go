package encryption

import (
	"context"
	"errors"
	"time"
)

// Status reports the keys in use and how far a rotation has progressed.
type Status struct {
	Write     Key      `json:"writeKey"`
	Read      []Key    `json:"readKeys"`
	Resources []string `json:"resources"`
	Phase     string   `json:"rotation"`
	// Loaded reports whether every API server uses the file as it is; nil if one does not answer. Behind are those that
	// do not.
	Loaded *bool    `json:"loaded,omitempty"`
	Behind []string `json:"behind,omitempty"`
	Stored Counts   `json:"stored,omitempty"`
	// Remark is the reason why something is missing.
	Remark string `json:"remark,omitempty"`
}

// statusTimeout bounds the requests to the datastore and the API servers for a status.
const statusTimeout = 10 * time.Second

// FileStatus returns the status of a server that does not run: what its file holds.
func FileStatus(file string) (*Status, error) {
	s, _, err := fileStatus(file)
	return s, err
}

// fileStatus returns the status that the file holds, and the file's hash.
func fileStatus(file string) (*Status, string, error) {
	c, hash, err := load(file)
	if err != nil {
		return nil, "", err
	}
	s := &Status{Write: c.keys[0].Key, Resources: c.resources, Phase: c.phase()}
	for _, key := range c.keys {
		s.Read = append(s.Read, key.Key)
	}
	return s, hash, nil
}

// Status returns the status; what cannot be found out is left out, with a remark.
func (r *Rotation) Status(ctx context.Context) (*Status, error) {
	s, hash, err := fileStatus(r.cfg.File)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	stored, errStored := r.count(ctx, s.Resources)
	s.Stored = stored
	var errLoaded error
	if s.Behind, errLoaded = r.behind(ctx, hash); errLoaded == nil {
		yes := len(s.Behind) == 0
		s.Loaded = &yes
	}
	if err := errors.Join(errStored, errLoaded); err != nil {
		s.Remark = err.Error()
	}
	return s, nil
}

// count counts what is stored of the resources with which key.
func (r *Rotation) count(ctx context.Context, resources []string) (Counts, error) {
	c, err := r.cfg.Datastore(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // only a connection
	return Count(ctx, c, resources)
}

// behind returns the addresses of the API servers that do not use the file with a hash.
func (r *Rotation) behind(ctx context.Context, hash string) ([]string, error) {
	rc, err := r.cfg.REST()
	if err != nil {
		return nil, err
	}
	all, err := apiServers(ctx, rc)
	if err != nil {
		return nil, err
	}
	return behind(ctx, all, hash)
}
