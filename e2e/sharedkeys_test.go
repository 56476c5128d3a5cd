package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// manySecrets makes n Secrets that sameKeys looks for.
func (e *env) manySecrets(n int) {
	e.Helper()
	for i := range n {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("kept-%d", i)},
			StringData: map[string]string{"word": fmt.Sprint("word ", i)}}
		_, err := e.Kube.CoreV1().Secrets(e.ns).Create(e.soon(), s, metav1.CreateOptions{})
		e.must(err)
	}
}

// sameKeys asks that all servers have the same file of keys and use it, with which everything is written, and that
// each of them reads all Secrets.
func (e *env) sameKeys(n int, key string, servers ...*cluster.Cluster) {
	e.Helper()
	var file string
	for _, c := range servers {
		by := e.through(c)
		raw, err := os.ReadFile(c.M.Host(cluster.Dirs().EncryptionConfig()))
		e.must(err)
		if file == "" {
			file = string(raw)
		}
		s := by.encryptionStatus()
		if string(raw) != file || s.Rotation != "none" || s.WriteKey.Name != key || len(s.ReadKeys) != 1 ||
			s.Loaded == nil || !*s.Loaded || len(s.Stored["secrets"]) != 1 {
			e.Errorf("%s: other keys (%v), or %+v", c.M.Name, string(raw) != file, s)
		}
		for i := range n {
			s, err := c.Kube.CoreV1().Secrets(e.ns).Get(e.soon(), fmt.Sprintf("kept-%d", i), getOptions)
			if err != nil || string(s.Data["word"]) != fmt.Sprint("word ", i) {
				e.Errorf("%s reads %+v, %v", c.M.Name, s, err)
				break
			}
		}
	}
}

// rotateKeys rotates by a server, as soon as that sees which of the others serve.
func (e *env) rotateKeys(by *cluster.Cluster) {
	e.Helper()
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		out, err := by.Umiak(ctx, "secrets-encrypt", "rotate")
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		return err
	}))
}

// rotatesKeysOfAll: the keys of Secrets are rotated on all servers while each is written to and read from, also where
// one is away at first, from two servers in turn.
func (e *env) rotatesKeysOfAll(servers ...*cluster.Cluster) {
	e.Helper()
	const many = 40
	e.manySecrets(many)
	p := e.probes()
	last := servers[len(servers)-1]
	for i, c := range servers[:len(servers)-1] {
		n := 0
		stop := p.probe("a Secret is changed through "+c.M.Name, func(ctx context.Context) error {
			n += len(servers)
			secrets := c.Kube.CoreV1().Secrets(e.ns)
			s, err := secrets.Get(ctx, fmt.Sprintf("kept-%d", (n+i)%many), getOptions)
			if err != nil {
				return err
			}
			s.Labels = map[string]string{"n": fmt.Sprint(n)}
			if _, err = secrets.Update(ctx, s, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
				return nil
			}
			return err
		})
		defer stop()
	}
	e.must(last.Kill())
	out, err := e.Umiak(e.soon(), "secrets-encrypt", "rotate")
	if err == nil || !strings.Contains(err.Error(), last.M.IP) && !strings.Contains(err.Error(), last.M.Name) {
		e.Errorf("rotated without %s: %s, %v", last.M.Name, out, err)
	}
	e.must(last.Start())
	e.must(last.Ready(e.within(2 * patience)))
	e.rotateKeys(servers[1])
	p.check("during the rotation")
	e.sameKeys(many, "key2", servers...)
}
