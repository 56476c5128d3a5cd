package storage

import (
	"context"
	"testing"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/sqlite"
)

// answering is a datastore that answers, whether or not it takes writes.
type answering struct {
	datastore.Store
	status datastore.Status
}

func (a answering) Status(context.Context) (datastore.Status, error) { return a.status, nil }

// TestWritesFail: a datastore that can be read and takes no writes is not healthy, and does not keep a stopping
// server waiting.
func TestWritesFail(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  datastore.Status
		healthy bool
	}{
		{"sqlite", datastore.Status{SQLite: &sqlite.Status{}}, true},
		{"sqlite, full", datastore.Status{SQLite: &sqlite.Status{LastError: "no space left on the device"}}, false},
		{"etcd", datastore.Status{Etcd: &etcd.Status{}}, true},
		{"etcd, full", datastore.Status{Etcd: &etcd.Status{Alarms: []string{"NOSPACE"}}}, false},
	} {
		s := Open(answering{status: c.status})
		if err := s.Check(t.Context()); (err == nil) != c.healthy {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := s.Status(t.Context()); err != nil {
			t.Errorf("%s: it answers, and %v", c.name, err)
		}
	}
}
