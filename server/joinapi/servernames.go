package joinapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Each server publishes the names and addresses in its certificate that may be its own alone (tls-san): no server
// signs a certificate for one of them to a node.
const (
	namesSuffix      = ".server-names.umiak"
	namesType        = corev1.SecretType("umiak.io/server-names")
	labelServerNames = "server-names"
	keyNames         = "names" // JSON list
	keyServerIPs     = "ips"   // JSON list
)

// publishNames shares with the other servers the names in a server's certificate, and the addresses that its settings
// add. It writes only what is new.
func (t Tokens) publishNames(ctx context.Context, server string, dnsNames []string, ips []netip.Addr) error {
	fail := func(err error) error { return fmt.Errorf("publish the names of server %s: %w", server, err) }
	names, errN := json.Marshal(slices.Sorted(slices.Values(dnsNames)))
	addrs, errA := json.Marshal(slices.SortedFunc(slices.Values(ips), netip.Addr.Compare))
	if err := errors.Join(errN, errA); err != nil {
		return fail(err)
	}
	data := map[string][]byte{keyNames: names, keyServerIPs: addrs}
	s, err := t.secrets().Get(ctx, server+namesSuffix, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: server + namesSuffix, Namespace: Namespace,
				Labels: map[string]string{Label: labelServerNames}},
			Type: namesType, Data: data,
		}
		if _, err = t.secrets().Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return fail(err)
		}
		return nil
	}
	if err != nil {
		return fail(err)
	}
	if maps.EqualFunc(s.Data, data, bytes.Equal) {
		return nil
	}
	s.Data = data
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

// serverNames returns the names in the certificates of all servers but one, which may be empty.
func (k *known) serverNames(but string) []string {
	var out []string
	k.eachServer(func(server string, s *corev1.Secret) {
		var list []string
		if server != but && json.Unmarshal(s.Data[keyNames], &list) == nil {
			out = append(out, list...)
		}
	})
	return out
}

// serverIPs returns the addresses that servers have in their certificates by a setting, each with the name of a server.
func (k *known) serverIPs() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	k.eachServer(func(server string, s *corev1.Secret) {
		var list []netip.Addr
		if json.Unmarshal(s.Data[keyServerIPs], &list) != nil {
			return // a server of an earlier release publishes none
		}
		for _, ip := range list {
			out[ip.Unmap()] = server
		}
	})
	return out
}

// eachServer calls f for what each server has published.
func (k *known) eachServer(f func(server string, s *corev1.Secret)) {
	all, err := k.secrets.List(labels.SelectorFromSet(labels.Set{Label: labelServerNames}))
	if err != nil {
		return // a lister of what is in memory does not fail
	}
	for _, s := range all {
		if name, ok := strings.CutSuffix(s.Name, namesSuffix); ok && s.Type == namesType {
			f(name, s)
		}
	}
}
