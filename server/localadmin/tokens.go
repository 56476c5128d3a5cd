package localadmin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/joinapi"
)

// Tokens are the cluster's, with the files in which the server of this machine, if there is one, keeps those of the
// first start.
type Tokens struct {
	joinapi.Tokens
	dirs layout.Dirs
}

// OpenTokens returns the tokens of the cluster that rc reaches as its administrator.
func OpenTokens(rc *rest.Config, d layout.Dirs) (t Tokens, err error) {
	t.dirs = d
	if err := rest.LoadTLSFiles(rc); err != nil {
		return t, fmt.Errorf("read the CA of %s: %w", rc.Host, err)
	}
	if t.Client, err = kubeclient.Of(rc); err != nil {
		return t, err
	}
	key := filepath.Join(d.ServerPKI(), "service-account.key")
	if _, err := os.Stat(key); err == nil { // on a server
		t.Secret = func() ([]byte, error) { return os.ReadFile(key) }
	}
	t.CA, t.Former, err = joinapi.CAHash(rc.CAData)
	return t, err
}

// JoinCommand returns the command line for the machine that is to join.
func (t Tokens) JoinCommand(ctx context.Context, kind token.Kind, tok token.Token) (string, error) {
	list, err := t.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: apiservers.Selector})
	if err != nil {
		return "", fmt.Errorf("find the servers: %w", err)
	}
	servers := apiservers.Of(list.Items)
	if len(servers) == 0 {
		return "", errors.New("find the servers: none has published its address yet, try again")
	}
	program := "umiak-agent"
	if kind == token.Server {
		program = "umiak server"
	}
	return fmt.Sprintf("%s --server https://%s --token %s", program, servers[0], tok.Line()), nil
}

// Revoke revokes a token, and removes its file.
func (t Tokens) Revoke(ctx context.Context, id string) error {
	err := t.Tokens.Revoke(ctx, id)
	file := t.file(id)
	if err != nil || file == "" {
		return err
	}
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Rotate gives a token another secret, in the cluster and in its file. The remarks name what is left to do elsewhere.
// The token is good also where an error is returned with it.
func (t Tokens) Rotate(ctx context.Context, id string) (tok token.Token, remarks []string, err error) {
	tok, rec, err := t.Tokens.Rotate(ctx, id)
	if err != nil {
		return token.Token{}, nil, err
	}
	if len(rec.SetOn) > 0 {
		key := map[string]string{joinapi.ServerID: "token", joinapi.AgentID: "agent-token"}[id]
		remarks = append(remarks, fmt.Sprintf("these servers have the old one in their settings (%s, %s-file): %s; it is not used any more: set the new one there, or none", key, key, strings.Join(rec.SetOn, ", ")))
	}
	if file := t.file(id); file != "" {
		if _, err := os.Stat(t.dirs.Server()); err == nil {
			if err := atomicfile.Write(file, []byte(tok.Line()+"\n"), 0o600); err != nil {
				return tok, remarks, err
			}
		}
	}
	if id != joinapi.ServerID {
		return tok, remarks, nil
	}
	// What is sealed with the old secret in the datastore has to be sealed with the new one.
	if !instance.Running(t.dirs) {
		return tok, append(remarks, "this is no server: restart one with the new token as its token, so that the keys in the datastore can be opened with it"), nil
	}
	_, err = server.ActionSeal.Call(ctx, t.dirs.ControlSocket(), control.Empty{})
	return tok, remarks, err
}

// file returns where a server keeps a token of the first start, empty for other tokens.
func (t Tokens) file(id string) string {
	switch id {
	case joinapi.ServerID:
		return t.dirs.ServerToken()
	case joinapi.AgentID:
		return t.dirs.AgentToken()
	}
	return ""
}
