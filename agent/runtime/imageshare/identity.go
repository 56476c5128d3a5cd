package imageshare

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// identity is the folder of the node's certificates; see agent.Joiner. They are renewed while the node runs, so the
// files are read for each connection.
type identity string

func (i identity) pair(name string) (tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(string(i), name+".crt"), filepath.Join(string(i), name+".key"))
	if err != nil {
		return c, fmt.Errorf("read certificate %s: %w", name, err)
	}
	return c, nil
}

func (i identity) pool(name string) (*x509.CertPool, error) {
	file := filepath.Join(string(i), name+".crt")
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("read CA: no certificate in %s", file)
	}
	return p, nil
}

// server is the TLS configuration for serving: the kubelet's serving certificate, and only clients that are nodes and
// that allowed accepts.
func (i identity) server(allowed func(node string) bool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, err := i.pair(nodecerts.KubeletServing)
			if err != nil {
				return nil, err
			}
			clients, err := i.pool(nodecerts.ClientCA)
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
				// Verify every connection: a session ticket would skip VerifyConnection's node check.
				SessionTicketsDisabled: true,
				VerifyConnection: func(s tls.ConnectionState) error {
					node, err := nodeOf(s)
					if err == nil && !allowed(node) {
						err = fmt.Errorf("%s is not a node of this cluster", node)
					}
					return err
				},
			}, nil
		}}
}

var errNoNode = errors.New("not a node's certificate")

// nodeOf returns the name of the node whose agent has connected.
func nodeOf(s tls.ConnectionState) (string, error) {
	if len(s.VerifiedChains) == 0 {
		return "", errNoNode
	}
	subject := s.PeerCertificates[0].Subject
	node, ok := wellknown.AgentOf(subject.CommonName, subject.Organization)
	if !ok {
		return "", errNoNode
	}
	return node, nil
}

// client is the TLS configuration for connecting to another node, whose certificate must be for that node's name.
func (i identity) client(node string) (*tls.Config, error) {
	cert, err := i.pair(nodecerts.AgentClient)
	if err != nil {
		return nil, err
	}
	servers, err := i.pool(nodecerts.ServerCA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
		RootCAs: servers, ServerName: node,
	}, nil
}
