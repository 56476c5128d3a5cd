package joinwire

// ServerRequest is what a server that joins others says of itself.
type ServerRequest struct {
	// Name is the server's, and its node's; Password proves, the next time, that it is the same machine.
	Name     string `json:"name"`
	Password string `json:"password"`
	// Datastore is the kind that the server is set up for.
	Datastore Datastore `json:"datastore"`
	// Peer is where the members of an etcd cluster are to reach it, as HOST:PORT.
	Peer string `json:"peer,omitempty"`
	// Settings are those that must be the same on all servers.
	Settings []Setting `json:"settings"`
}

// Datastore is what servers share their state by.
type Datastore string

// The kinds. A server whose state is in SQLite takes no other in.
const (
	Etcd     Datastore = "etcd"     // in the servers' processes
	External Datastore = "external" // of somebody else; its address is among the settings of each server
)

// Setting is a key of the configuration with its value, as a user would write it.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// ServerResponse is what it gets.
type ServerResponse struct {
	// Files are the cluster's keys; none in the answer to a check.
	Files []File `json:"files"`
	// Members are those of the etcd cluster, the new one included unless it is a check; none with another datastore.
	Members []Member `json:"members,omitempty"`
}

// File is one of the files that all servers have in common.
type File struct {
	Name string `json:"name"` // below data-dir/server, with slashes
	Data []byte `json:"data"`
}

// Member is a member of an etcd cluster.
type Member struct {
	ID      uint64 `json:"id,string"`
	Name    string `json:"name"` // empty until it has started once
	Peer    string `json:"peer"` // HOST:PORT
	Learner bool   `json:"learner,omitempty"`
	// Needed means that a new member has to reach this one: it is the leader, or the server that answers.
	Needed bool `json:"needed,omitempty"`
}

// Differences are the settings of which the two have not the same.
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

// Difference is a setting that two servers have unlike.
type Difference struct{ Key, Ours, Theirs string }
