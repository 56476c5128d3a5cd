// Package joinwire is what a machine that joins and a server say to each other, over HTTPS on the API
// server's port:
//
//	POST /umiak/v1/join/node    with a token: a node gets its certificates for the first time
//	POST /umiak/v1/join/renew   with the node's client certificate: it gets new ones
//	POST /umiak/v1/join/check   as renew, but nothing is signed: does the cluster still know the node?
//	POST /umiak/v1/join/taints  as renew: the node gets the taints of its settings
//	POST /umiak/v1/join/server  with a token for servers: a server gets the cluster's keys
//	POST /umiak/v1/join/server/check  as server, but nobody is taken in: do the servers reach each other?
//
// The first three take a NodeRequest and answer with a NodeResponse, taints a TaintsRequest and a TaintsResponse, the others
// a ServerRequest and a ServerResponse; all may answer with an Error. The token stands in the Authorization header (HTTP basic
// authentication: its id and its secret), so that a server can refuse before it reads a body. Keys never leave
// a node: requests hold CSRs.
//
// It holds types, limits and the strict decoder, and imports nothing of umiak.
package joinwire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Paths on the API server's port. Prefix is that of all.
const (
	Prefix    = "/umiak/v1/join/"
	NodePath  = Prefix + "node"
	RenewPath = Prefix + "renew"
	CheckPath = Prefix + "check"

	TaintsPath = Prefix + "taints"

	ServerPath      = Prefix + "server"
	ServerCheckPath = Prefix + "server/check"
)

// Headers of requests and answers: which release the sender is of, as v1.37.2+umiak1, and which etcd a server has.
const (
	VersionHeader = "Umiak-Version"
	EtcdHeader    = "Umiak-Etcd-Version"
)

// MaxBody is the most that a request or an answer may hold.
const MaxBody = 64 << 10

// NodeRequest is what a node asks for.
type NodeRequest struct {
	// Name is the node's; IPs are its addresses, for which its kubelet's certificate is to be good.
	Name string   `json:"name"`
	IPs  []string `json:"ips"`
	// ExternalIPs are addresses by which others reach the node through a router. The kubelet's certificate has those of them
	// that no server has.
	ExternalIPs []string `json:"externalIPs,omitempty"`
	// Password proves, the next time, that it is the same machine that has this name.
	Password string `json:"password"`
	// CSRs in PEM form: the kubelet's as a client, the agent's as a client, and the kubelet's as a server.
	Kubelet string `json:"kubelet"`
	Agent   string `json:"agent"`
	Serving string `json:"serving"`
}

// NodeResponse is what a node gets. All certificates are in PEM form; there are none in the answer to a check.
type NodeResponse struct {
	Cluster Cluster `json:"cluster"`
	// ServerCA and ClientCA are whom the node trusts, as its servers and as its clients.
	ServerCA string `json:"serverCA"`
	ClientCA string `json:"clientCA"`
	Kubelet  string `json:"kubelet"`
	Agent    string `json:"agent"`
	Serving  string `json:"serving"`
	// LifetimeSeconds is how long the certificates were made to last. They do not say it themselves: they
	// are good from 1970 on, so that a clock that is behind does no harm.
	LifetimeSeconds int64 `json:"lifetimeSeconds"`
	// Servers are the addresses of all servers, as HOST:PORT.
	Servers []string `json:"servers"`
}

// Node is what a node says of itself when it joins.
type Node struct {
	Name        string
	IPs         []string
	ExternalIPs []string
}

// TaintsRequest is what a node whose settings give it taints asks for; Password is as in NodeRequest.
type TaintsRequest struct {
	Password string         `json:"password"`
	Taints   []corev1.Taint `json:"taints"`
}

// TaintsResponse says that the Node has them.
type TaintsResponse struct{}

// Cluster is what a node learns from the cluster when it joins. It holds no secret: keys and
// certificates are files under the node's own directory.
type Cluster struct {
	// APIServer is the URL at which this node reaches the API server.
	APIServer string `json:"apiServer"`
	// ClusterCIDR and ServiceCIDR are the pods' and the Services' address ranges, one a family.
	ClusterCIDR []netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR []netip.Prefix `json:"serviceCIDR"`
	// ClusterDNS are the addresses of the DNS Service, one a family; ClusterDomain as cluster.local.
	ClusterDNS    []netip.Addr `json:"clusterDNS"`
	ClusterDomain string       `json:"clusterDomain"`
	// FlannelBackend is vxlan, host-gw, wireguard-native or none.
	FlannelBackend string `json:"flannelBackend"`
	// NodePorts is the range of node ports, as 30000-32767.
	NodePorts string `json:"nodePorts"`
	// UpgradesOff says that the cluster never asks for an upgrade of its nodes: nobody else is to be believed who does.
	UpgradesOff bool `json:"upgradesOff,omitempty"`
	// ExternalIPs are the ranges of which spec.externalIPs of Services may be.
	ExternalIPs []netip.Prefix `json:"externalIPs,omitempty"`
}

// Code says what kind of refusal an Error is.
type Code string

// The codes. Starting and Busy are about the server and pass; the others are about the request.
const (
	BadRequest   Code = "bad-request"   // the request is not one
	BadToken     Code = "bad-token"     // unknown, revoked, ended or used up, or of the wrong kind
	NameTaken    Code = "name-taken"    // another machine has this node name
	BadSettings  Code = "bad-settings"  // the server's settings are not the cluster's
	BadVersion   Code = "bad-version"   // the machine's release does not go with the cluster's
	NotShared    Code = "not-shared"    // the cluster's datastore is for one server alone, or another than asked for
	UnknownNode  Code = "unknown-node"  // the node was deleted from the cluster
	BadIdentity  Code = "bad-identity"  // the client certificate is not one of this cluster's
	Starting     Code = "starting"      // the server is not ready yet
	Busy         Code = "busy"          // too many at once
	ServerFailed Code = "server-failed" // the server could not do it
)

// Error is a refusal.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Refuse makes an Error.
func Refuse(code Code, format string, a ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, a...)}
}

// Decode reads one JSON object of at most MaxBody bytes, all of whose fields are known. Servers read
// requests with it.
func Decode(r io.Reader, v any) error { return decode(r, v, true) }

// DecodeAnswer is Decode for nodes: a server that is newer may say more than they know.
func DecodeAnswer(r io.Reader, v any) error { return decode(r, v, false) }

func decode(r io.Reader, v any, strict bool) error {
	raw, err := io.ReadAll(io.LimitReader(r, MaxBody+1))
	switch {
	case err != nil:
		return fmt.Errorf("read body: %w", err)
	case len(raw) > MaxBody:
		return fmt.Errorf("the body is longer than %d bytes", MaxBody)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the body is not what it should be: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the body's end")
	}
	return nil
}
