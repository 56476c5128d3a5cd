package localadmin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
)

// clientsReady returns an error while something in the cluster needs the old ones of the authorities that are named,
// all if none is, as far as the cluster's objects show.
func clientsReady(ctx context.Context, api kubernetes.Interface, d layout.Dirs, names []string) error {
	meant := func(name string) bool { return len(names) == 0 || slices.Contains(names, name) }
	if meant(string(pki.ServerCA)) {
		if err := namespacesHaveCA(ctx, api, filepath.Join(d.ServerPKI(), string(pki.ServerCA)+".crt")); err != nil {
			return err
		}
	}
	if meant(pki.ServiceAccount) {
		return noOldTokens(ctx, api, filepath.Join(d.ServerPKI(), "service-account.pub"))
	}
	return nil
}

// namespacesHaveCA compares each namespace's copy of the CA, which the controller manager writes after a restart, with
// the file.
func namespacesHaveCA(ctx context.Context, api kubernetes.Interface, file string) error {
	want, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(want), "-----END CERTIFICATE-----")
	list, err := api.CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx,
		metav1.ListOptions{FieldSelector: "metadata.name=kube-root-ca.crt"})
	if err != nil {
		return fmt.Errorf("ask whether pods know the new CA (--force does without): %w", err)
	}
	var not []string
	for _, m := range list.Items {
		if !strings.Contains(m.Data["ca.crt"], first) {
			not = append(not, m.Namespace)
		}
	}
	if len(not) > 0 {
		return fmt.Errorf("the namespaces %s do not have the new CA yet (ConfigMap kube-root-ca.crt): it comes some seconds after umiak was restarted; try again then", strings.Join(not, ", "))
	}
	return nil
}

// noOldTokens returns an error that names the Secrets with tokens which the key in the file has not signed: nothing
// renews those.
func noOldTokens(ctx context.Context, api kubernetes.Interface, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return fmt.Errorf("%s holds no key", file)
	}
	sum := sha256.Sum256(b.Bytes)
	kid := base64.RawURLEncoding.EncodeToString(sum[:]) // as Kubernetes names keys
	opts := metav1.ListOptions{Limit: 500, FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken)}
	var old []string
	for {
		list, err := api.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, opts)
		if err != nil {
			return fmt.Errorf("look for tokens of the old key (--force does without): %w", err)
		}
		for _, s := range list.Items {
			if id := keyID(string(s.Data[corev1.ServiceAccountTokenKey])); id != "" && id != kid {
				old = append(old, s.Namespace+"/"+s.Name)
			}
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
	}
	if len(old) > 0 {
		return fmt.Errorf("these Secrets hold ServiceAccount tokens of the old key, and whoever uses them would be locked out: %s; delete them and make them anew, or use --force", strings.Join(old, ", "))
	}
	return nil
}

// keyID returns the name of the key that has signed a token, empty if the token has no such header.
func keyID(jwt string) string {
	head, _, _ := strings.Cut(jwt, ".")
	var h struct {
		Kid string `json:"kid"`
	}
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil || json.Unmarshal(raw, &h) != nil {
		return ""
	}
	return h.Kid
}
