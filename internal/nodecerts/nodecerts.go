// Package nodecerts names the certificates of a node: their users, their groups and their files. The servers that issue
// them, the nodes that ask for them and all who read them agree here.
//
// It imports internal/wellknown and nothing else of umiak.
package nodecerts

import (
	"crypto/x509/pkix"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// The base names of a node's certificates and keys in layout.Dirs.AgentPKI: NAME.crt and NAME.key.
const (
	KubeletClient  = "kubelet-client"  // the kubelet, towards the API server
	KubeletServing = "kubelet-serving" // the kubelet's port
	AgentClient    = "agent-client"    // the other parts of the node, towards the API server
)

// The base names of the authorities that a node trusts: NAME.crt in the same folder.
const (
	ServerCA = "server-ca" // has issued the API server's certificate
	ClientCA = "client-ca" // has issued the certificates of those who connect to the kubelet
)

// Identity is one certificate of a node.
type Identity struct {
	File   string   // base name of its files
	User   string   // common name
	Groups []string // organizations
	// Serving means that it is a serving certificate, of the server CA, for the node's name and addresses. Otherwise
	// it is a client certificate, of the client CA, without names or addresses.
	Serving bool
}

// Kubelet returns the identity of a node's kubelet as a client.
func Kubelet(node string) Identity {
	return Identity{File: KubeletClient, User: wellknown.NodeUserPrefix + node, Groups: []string{wellknown.NodesGroup}}
}

// Serving returns the identity of a node's kubelet as a server.
func Serving(node string) Identity {
	i := Kubelet(node)
	i.File, i.Serving = KubeletServing, true
	return i
}

// Agent returns the identity of the other parts of a node.
func Agent(node string) Identity {
	return Identity{File: AgentClient, User: wellknown.AgentUserPrefix + node, Groups: []string{wellknown.AgentsGroup}}
}

// Subject returns the certificate's subject.
func (i Identity) Subject() pkix.Name { return pkix.Name{CommonName: i.User, Organization: i.Groups} }
