// Package joinwire defines the join API, by which machines join a cluster, over HTTPS on the API server's port:
//
//	POST /umiak/v1/join/node    with a token: a node gets its first certificates
//	POST /umiak/v1/join/renew   with the client certificate of the node: it gets new certificates
//	POST /umiak/v1/join/check   like renew, but nothing is signed: whether the cluster still has the node
//	POST /umiak/v1/join/taints  like renew: the Node gets the taints in its settings
//	POST /umiak/v1/join/server  with a token for servers: a server gets the keys of the cluster
//	POST /umiak/v1/join/server/check  like server, but no server is added: whether the servers reach each other
//
// The first three take a NodeRequest and answer with a NodeResponse, taints takes a TaintsRequest and answers with a
// TaintsResponse, the others take a ServerRequest and answer with a ServerResponse. Each may answer with an Error. The
// token is in the Authorization header (HTTP basic authentication: its ID and its secret), so that a server can refuse
// before it reads a body. Private keys never leave a node: requests contain CSRs.
//
// The package has types, limits and the strict decoder, and imports nothing of umiak.
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

// Paths on the API server's port. Prefix is common to all.
const (
	Prefix    = "/umiak/v1/join/"
	NodePath  = Prefix + "node"
	RenewPath = Prefix + "renew"
	CheckPath = Prefix + "check"

	TaintsPath = Prefix + "taints"

	ServerPath      = Prefix + "server"
	ServerCheckPath = Prefix + "server/check"
)

// Headers of requests and answers: the release of the sender, for instance v1.37.2+umiak1, and the version of a
// server's etcd.
const (
	VersionHeader = "Umiak-Version"
	EtcdHeader    = "Umiak-Etcd-Version"
)

// MaxBody is the most bytes in the body of a request or an answer.
const MaxBody = 64 << 10

// NodeRequest is the request of a node for certificates.
type NodeRequest struct {
	// Name is the name of the node. IPs are its addresses, for the certificate of its kubelet.
	Name string   `json:"name"`
	IPs  []string `json:"ips"`
	// ExternalIPs are addresses at which the node is reached through a router. The kubelet's certificate has those
	// that no server has.
	ExternalIPs []string `json:"externalIPs,omitempty"`
	// DNSNames are further names of the node, for its Node and the kubelet's certificate. No two nodes have the same.
	DNSNames []string `json:"dnsNames,omitempty"`
	// Password proves at the next request that it is the same machine.
	Password string `json:"password"`
	// Kubelet, Agent and Serving are CSRs in PEM form: of the kubelet as a client, of the agent as a client, and of the
	// kubelet as a server.
	Kubelet string `json:"kubelet"`
	Agent   string `json:"agent"`
	Serving string `json:"serving"`
}

// NodeResponse is the answer to a NodeRequest. All certificates are in PEM form; they are empty in the answer to a
// check.
type NodeResponse struct {
	Cluster Cluster `json:"cluster"`
	// ServerCA and ClientCA are the CAs that the node trusts for servers and for clients.
	ServerCA string `json:"serverCA"`
	ClientCA string `json:"clientCA"`
	Kubelet  string `json:"kubelet"`
	Agent    string `json:"agent"`
	Serving  string `json:"serving"`
	// LifetimeSeconds is the lifetime of the certificates. It cannot be computed from them: they are valid from 1970
	// on, so that a clock that is behind does no harm.
	LifetimeSeconds int64 `json:"lifetimeSeconds"`
	// Servers are the addresses of all servers, as HOST:PORT.
	Servers []string `json:"servers"`
}

// Node is the identity that a node claims when it joins.
type Node struct {
	Name        string
	IPs         []string
	ExternalIPs []string
	DNSNames    []string
}

// TaintsRequest is the request of a node for the taints in its settings. Password is as in NodeRequest.
type TaintsRequest struct {
	Password string         `json:"password"`
	Taints   []corev1.Taint `json:"taints"`
}

// TaintsResponse confirms that the Node has the taints.
type TaintsResponse struct{}

// Cluster holds the settings of the cluster that a node needs. It has no secrets.
type Cluster struct {
	// APIServer is the URL at which this node reaches the API server.
	APIServer string `json:"apiServer"`
	// ClusterCIDR and ServiceCIDR are the pods' and the Services' address ranges, one a family.
	ClusterCIDR []netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR []netip.Prefix `json:"serviceCIDR"`
	// ClusterDNS are the addresses of the DNS Service, one a family. ClusterDomain is for instance cluster.local.
	ClusterDNS    []netip.Addr `json:"clusterDNS"`
	ClusterDomain string       `json:"clusterDomain"`
	// FlannelBackend is vxlan, host-gw, wireguard-native or none.
	FlannelBackend string `json:"flannelBackend"`
	// FlannelExternalIP means that nodes reach each other's pods at external addresses, where nodes have them.
	FlannelExternalIP bool `json:"flannelExternalIP,omitempty"`
	// NetworkPolicyOff means that the nodes enforce no NetworkPolicy.
	NetworkPolicyOff bool `json:"networkPolicyOff,omitempty"`
	// KubeProxyOff means that another program than the nodes' own proxy serves Services.
	KubeProxyOff bool `json:"kubeProxyOff,omitempty"`
	// NodePorts is the range of node ports, for instance 30000-32767.
	NodePorts string `json:"nodePorts"`
	// UpgradesOff means that the cluster never requests upgrades of its nodes, so that the node ignores such a request.
	UpgradesOff bool `json:"upgradesOff,omitempty"`
	// ExternalIPs are the ranges in which spec.externalIPs of Services may be.
	ExternalIPs []netip.Prefix `json:"externalIPs,omitempty"`
}

// Code is the kind of an Error.
type Code string

// The codes. Starting, Busy and ServerFailed concern the server and may pass; the others concern the request.
const (
	BadRequest   Code = "bad-request"   // the request is malformed
	BadToken     Code = "bad-token"     // unknown, revoked, ended or used up, or of the wrong kind
	NameTaken    Code = "name-taken"    // another machine has this node name
	BadSettings  Code = "bad-settings"  // the settings of the server differ from those of the cluster
	BadVersion   Code = "bad-version"   // the release of the machine is not compatible with that of the cluster
	NotShared    Code = "not-shared"    // the cluster's datastore is for one server only, or not of the requested kind
	UnknownNode  Code = "unknown-node"  // the node was deleted from the cluster
	BadIdentity  Code = "bad-identity"  // the client certificate is not of this cluster
	Starting     Code = "starting"      // the server is not ready yet
	Busy         Code = "busy"          // too many requests at once
	ServerFailed Code = "server-failed" // an error on the server
)

// Error is a refusal.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Refuse returns an Error.
func Refuse(code Code, format string, a ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, a...)}
}

// Decode decodes one JSON object of at most MaxBody bytes and refuses unknown fields. Servers decode requests with it.
func Decode(r io.Reader, v any) error { return decode(r, v, true) }

// DecodeAnswer decodes an answer. Unlike Decode, it ignores unknown fields, which a newer server may send.
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
		return fmt.Errorf("decode body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data follows the JSON object in the body")
	}
	return nil
}
