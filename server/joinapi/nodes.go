package joinapi

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/umiak-io/umiak/internal/token"
)

const (
	nodeSuffix = ".node-password.umiak"
	nodeType   = corev1.SecretType("umiak.io/node-password")
	keyToken   = "token" // the id of the token with which the node joined
	// keyKind is that of tokens: server, where a server has joined under the name, with or without a node.
)

var errNameTaken = errors.New("another machine has joined under this name")

// nodeOf is the node whose password a Secret holds, by the Secret's name.
func nodeOf(s *corev1.Secret) (name string, ok bool) {
	name, ok = strings.CutSuffix(s.Name, nodeSuffix)
	return name, ok && name != ""
}

// owns reports whether a password is the one with which a node joined.
func owns(s *corev1.Secret, password string) bool {
	return s.Type == nodeType && subtle.ConstantTimeCompare(s.Data[keyHash], []byte(token.HashSecret(password))) == 1
}

// claim reserves a node name for the first machine that asks, which has the password. It writes only where the name is
// free: a write goes through the webhooks of the cluster's users, which may need this very node. fill, which may be
// nil, adds to the Secret.
func (t Tokens) claim(ctx context.Context, node, password, tokenID string, kind token.Kind,
	fill func(*corev1.Secret) error) error {
	s := nodeSecret(node, password, tokenID, kind)
	if fill != nil {
		if err := fill(s); err != nil {
			return err
		}
	}
	old, err := t.secrets().Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if _, err = t.secrets().Create(ctx, s, metav1.CreateOptions{}); err == nil {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("keep the password of node %s: %w", node, err)
		}
		old, err = t.secrets().Get(ctx, s.Name, metav1.GetOptions{}) // another was quicker
	}
	if err != nil {
		return fmt.Errorf("read the password of node %s: %w", node, err)
	}
	if !owns(old, password) {
		return errNameTaken
	}
	return nil
}

// Reserve takes a node name, addresses and further names for the server's own node, also from another machine, and
// removes these names from the further names of agents' nodes. It reports whether another machine had the name.
func (t Tokens) Reserve(ctx context.Context, node, password string, ips []netip.Addr, names ...string) (taken bool,
	err error) {
	if taken, err = t.reserve(ctx, node, password); err != nil {
		return taken, err
	}
	err = t.record(ctx, node, func(m *member) (addresses, []string) {
		return addresses{IPs: ips, Names: names}, m.keys
	})
	if err != nil {
		return taken, err
	}
	return taken, t.clearNames(ctx, node, slices.Concat([]string{node}, names))
}

func (t Tokens) reserve(ctx context.Context, node, password string) (taken bool, err error) {
	err = t.claim(ctx, node, password, "", token.Server, nil)
	if !errors.Is(err, errNameTaken) {
		return false, err
	}
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		s, err := t.secrets().Get(ctx, node+nodeSuffix, metav1.GetOptions{})
		if err != nil {
			return err
		}
		next := nodeSecret(node, password, "", token.Server)
		s.Labels, s.Type = next.Labels, next.Type
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		maps.Copy(s.Data, next.Data) // the record of its taints stays: the Node may be there still
		_, err = t.secrets().Update(ctx, s, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return true, fmt.Errorf("keep the password of node %s: %w", node, err)
	}
	return true, nil
}

// Free removes the reservation of a node name and reports whether there was one.
func (t Tokens) Free(ctx context.Context, node string) (bool, error) {
	err := t.secrets().Delete(ctx, node+nodeSuffix, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("free the name of node %s: %w", node, err)
	}
	return true, nil
}

func nodeSecret(node, password, tokenID string, kind token.Kind) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: node + nodeSuffix, Namespace: Namespace,
			Labels: map[string]string{Label: labelNode}},
		Type: nodeType,
		Data: map[string][]byte{keyHash: []byte(token.HashSecret(password)), keyToken: []byte(tokenID),
			keyKind: []byte(kind)},
	}
}
