package joinwire

// ServerRequest is the request of a server that joins others.
type ServerRequest struct {
	// Name is the name of the server and its node. Password proves at the next request that it is the same machine.
	Name     string `json:"name"`
	Password string `json:"password"`
	// Datastore is the kind of datastore in the settings of the server.
	Datastore Datastore `json:"datastore"`
	// Peer is the HOST:PORT at which the members of an etcd cluster reach it; empty with another datastore.
	Peer string `json:"peer,omitempty"`
	// Settings are the settings that must be the same on all servers.
	Settings []Setting `json:"settings"`
}

// Datastore is a kind of datastore that servers can share.
type Datastore string

// The kinds. A server with SQLite admits no other server.
const (
	Etcd     Datastore = "etcd"     // embedded in the servers
	External Datastore = "external" // a database that the user runs; each server has its address in its settings
)

// Setting is a key of the configuration with its value, as a user would write it.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ServerResponse is the answer to a ServerRequest.
type ServerResponse struct {
	// Files are the keys of the cluster; empty in the answer to a check.
	Files []File `json:"files"`
	// Members are the members of the etcd cluster, with the new one unless it is a check; empty with another datastore.
	Members []Member `json:"members,omitempty"`
}

// File is a file that all servers share.
type File struct {
	Name string `json:"name"` // below data-dir/server, with slashes
	Data []byte `json:"data"`
}

// Member is a member of an etcd cluster.
type Member struct {
	ID      uint64 `json:"id,string"`
	Name    string `json:"name"` // empty until the member has started once
	Peer    string `json:"peer"` // HOST:PORT
	Learner bool   `json:"learner,omitempty"`
	// Needed means that a new member must be able to reach this one: it is the leader, or the server that answers.
	Needed bool `json:"needed,omitempty"`
}

// Differences returns the settings whose values differ.
func Differences(ours, theirs []Setting) []Difference {
	var out []Difference
	have := map[string]string{}
	for _, s := range theirs {
		have[s.Key] = s.Value
	}
	for _, s := range ours {
		if v, ok := have[s.Key]; !ok || v != s.Value {
			out = append(out, Difference{Key: s.Key, Ours: s.Value, Theirs: v})
		}
		delete(have, s.Key)
	}
	for _, s := range theirs {
		if v, ok := have[s.Key]; ok {
			out = append(out, Difference{Key: s.Key, Theirs: v})
		}
	}
	return out
}

// Difference is a setting with the values of two servers; a missing one is empty.
type Difference struct{ Key, Ours, Theirs string }
