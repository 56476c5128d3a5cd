package joinapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Each server publishes the names in its certificate, which may be its own alone (tls-san): no server signs a certificate
// for one of them to a node.
const (
	namesSuffix      = ".server-names.umiak"
	namesType        = corev1.SecretType("umiak.io/server-names")
	labelServerNames = "server-names"
	keyNames         = "names" // JSON list
)

// PublishNames tells the other servers the names in a server's certificate. It writes only what is new.
func (t Tokens) PublishNames(ctx context.Context, server string, dnsNames []string) error {
	raw, err := json.Marshal(slices.Sorted(slices.Values(dnsNames)))
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("publish the names of server %s: %w", server, err) }
	s, err := t.secrets().Get(ctx, server+namesSuffix, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: server + namesSuffix, Namespace: Namespace, Labels: map[string]string{Label: labelServerNames}},
			Type:       namesType, Data: map[string][]byte{keyNames: raw},
		}
		if _, err = t.secrets().Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return fail(err)
		}
		return nil
	}
	if err != nil {
		return fail(err)
	}
	if string(s.Data[keyNames]) == string(raw) {
		return nil
	}
	s.Data = map[string][]byte{keyNames: raw}
	if _, err = t.secrets().Update(ctx, s, metav1.UpdateOptions{}); err != nil {
		return fail(err)
	}
	return nil
}

// WithdrawNames takes back what a server has published that is no server any more.
func (t Tokens) WithdrawNames(ctx context.Context, server string) error {
	err := t.secrets().Delete(ctx, server+namesSuffix, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("withdraw the names of server %s: %w", server, err)
	}
	return nil
}

// serverNames are the names in the certificates of all servers but one, which may be empty.
func (k *known) serverNames(but string) []string {
	all, err := k.secrets.List(labels.SelectorFromSet(labels.Set{Label: labelServerNames}))
	if err != nil {
		return nil // a lister's is always nil
	}
	var out []string
	for _, s := range all {
		var list []string
		if s.Type == namesType && s.Name != but+namesSuffix && json.Unmarshal(s.Data[keyNames], &list) == nil {
			out = append(out, list...)
		}
	}
	return out
}
