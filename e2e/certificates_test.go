package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// probes are clients that ask all the time, each over a new connection, so that every answer proves that
// client and server trust each other now.
type probes struct {
	e       *env
	mu      sync.Mutex
	failed  []string
	excused atomic.Bool // a restart that was announced
	count   atomic.Int64
}

func (e *env) probes() *probes {
	return &probes{e: e}
}

// probe asks with ask until the returned function is called.
func (p *probes) probe(name string, ask func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(p.e.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			excused := p.excused.Load()
			short, end := context.WithTimeout(ctx, 20*time.Second)
			err := ask(short)
			end()
			if err != nil && ctx.Err() == nil && !excused && !p.excused.Load() {
				p.mu.Lock()
				p.failed = append(p.failed, fmt.Sprintf("%s at %s: %v", name, time.Now().Format("05.000"), err))
				p.mu.Unlock()
			}
			p.count.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond): // a client that asks ten times a second
			}
		}
	}()
	stop = func() { cancel(); <-done }
	p.e.Cleanup(stop)
	return stop
}

// logs reads the log of a pod of the web, through the API server from the kubelet.
func logs(pods corev1client.PodInterface) func(context.Context) error {
	return func(ctx context.Context) error {
		l, err := pods.List(ctx, labeled("app=web"))
		if err != nil {
			return err
		}
		return pods.GetLogs(l.Items[0].Name, &corev1.PodLogOptions{}).Do(ctx).Error()
	}
}

// restart restarts umiak, announced to the clients. It is over when the kubelet knows its pods again, which is a
// moment after the node is ready.
func (p *probes) restart() {
	p.e.Helper()
	p.excused.Store(true)
	p.e.again()
	p.e.must(cluster.Eventually(p.e.soon(), logs(p.e.Kube.CoreV1().Pods(p.e.ns))))
	p.excused.Store(false)
}

// check fails the test for every request that failed so far.
func (p *probes) check(when string) {
	p.e.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.failed[:min(len(p.failed), 5)] {
		p.e.Errorf("%s: %s", when, f)
	}
	if len(p.failed) > 5 {
		p.e.Errorf("%s: %d failed in all", when, len(p.failed))
	}
	p.failed = nil
}

// admin is the administrator's kubeconfig as it is on the disk now.
func (e *env) admin() *rest.Config {
	e.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", e.M.Host(cluster.Dirs().AdminKubeconfig()))
	e.must(err)
	return cfg
}

// errUnauthorized is the API server's 401.
var errUnauthorized = errors.New("unauthorized")

// asks reads a ServiceAccount, over a new connection each time.
func (e *env) asks(cfg *rest.Config) func(context.Context) error {
	e.Helper()
	conf, err := rest.TLSConfigFor(cfg)
	e.must(err)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DialContext: e.M.Dial,
		DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/api/v1/namespaces/"+e.ns+
			"/serviceaccounts/default", nil)
		if err != nil {
			return err
		}
		if cfg.BearerToken != "" {
			req.Header.Set("Authorization", "Bearer "+cfg.BearerToken)
		}
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			return nil
		case http.StatusUnauthorized:
			return errUnauthorized
		}
		return errors.New(resp.Status)
	}
}

// trusting is a config with the same user and other roots.
func trusting(cfg *rest.Config, roots []byte) *rest.Config {
	c := rest.CopyConfig(cfg)
	c.CAData, c.CAFile = roots, ""
	return c
}

// withToken is a config of a ServiceAccount.
func withToken(cfg *rest.Config, token string) *rest.Config {
	c := rest.AnonymousClientConfig(cfg)
	c.BearerToken = token
	return c
}

// served is the serial number of the certificate that a port shows.
func (e *env) served(port string) (string, error) {
	c, err := e.M.Dial(e.soon(), "tcp", e.M.IP+":"+port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only to look at it
	if err := t.HandshakeContext(e.soon()); err != nil {
		return "", err
	}
	return t.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func (e *env) accountToken(account string) string {
	e.Helper()
	tr, err := e.Kube.CoreV1().ServiceAccounts(e.ns).CreateToken(e.soon(), account, &authv1.TokenRequest{},
		metav1.CreateOptions{})
	e.must(err)
	return tr.Status.Token
}

// signer is which key has signed a token.
func signer(t *testing.T, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	var h struct {
		Kid string `json:"kid"`
	}
	if err = errors.Join(err, json.Unmarshal(raw, &h)); err != nil {
		t.Fatal(err)
	}
	return h.Kid
}

// controllersWork shows that controller manager, scheduler and kubelet still reach the API server, and it
// the kubelet: a new pod runs and can be looked into.
func (e *env) controllersWork(name string) {
	e.Helper()
	e.client(name)
	// client-go, as which the API server talks to kubelets, reads its certificate at a connection, but not more often
	// than once a second; and when it finds another it cuts all connections, the one that it is making among them.
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.exec(ctx, name, "", "hostname")
		if err == nil && strings.TrimSpace(out) != name {
			err = fmt.Errorf("hostname says %q", out)
		}
		return err
	}))
}

// again restarts umiak and waits until all of it is up.
func (e *env) again() {
	e.Helper()
	e.must(e.Stop(e.within(40 * time.Second)))
	e.must(e.Start())
	e.must(e.Cluster.Ready(e.within(2 * patience)))
	e.must(cluster.Eventually(e.within(2*patience), func(ctx context.Context) error {
		_, err := e.Umiak(ctx, "status")
		return err
	}))
}

func TestCertificatesAndAuthoritiesAreRotatedUnderLoad(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "certs"}).ready()
	e.apply(deployment)
	e.rolledOut("web")
	e.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default}]
`)
	_, err := e.Kube.CoreV1().Secrets(e.ns).Create(e.soon(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "lasting",
			Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type: corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	e.must(err)
	lasting, err := cluster.Until(e.soon(), e.Kube.CoreV1().Secrets(e.ns), named("lasting"),
		func(s *corev1.Secret) (bool, string) {
			return len(s.Data["token"]) > 0, "no token yet"
		})
	e.must(err)
	containers := e.containerProcesses()
	first := e.admin()
	oldRoot := first.CAData
	oldToken := e.accountToken("default")
	p := e.probes()
	endOld := p.probe("a kubeconfig of before", e.asks(first))
	endToken := p.probe("a token of before", e.asks(withToken(first, oldToken)))
	endLasting := p.probe("a token of before in a Secret", e.asks(withToken(first, string(lasting.Data["token"]))))
	endLogs := p.probe("logs of a pod", logs(e.Kube.CoreV1().Pods(e.ns)))

	// check
	out, err := e.Umiak(e.soon(), "certificate", "check")
	e.must(err)
	t.Logf("check:\n%s", out)
	out, err = e.Umiak(e.soon(), "certificate", "check", "-o", "json")
	e.must(err)
	var list []struct{ Name, State, UsedBy string }
	e.must(json.Unmarshal([]byte(out), &list))
	if len(list) < 4+7+2+3 {
		t.Errorf("%d certificates: %s", len(list), out)
	}
	for _, c := range list {
		if c.State != "ok" || c.UsedBy == "" {
			t.Errorf("%+v", c)
		}
	}
	if _, err := e.Umiak(e.soon(), "certificate", "check", "--warn", "100d"); err == nil ||
		!strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("what ends within 100 days: %v", err)
	}

	// rotate: the same process shows and uses new ones.
	pid := e.PID()
	was := map[string]string{}
	for _, port := range []string{"6443", "10250"} {
		was[port], err = e.served(port)
		e.must(err)
	}
	out, err = e.Umiak(e.soon(), "certificate", "rotate")
	e.must(err)
	if strings.Count(out, "renewed") != 7+3 {
		t.Errorf("rotate says:\n%s", out)
	}
	for port, serial := range was {
		e.must(cluster.Eventually(e.within(2*patience), func(context.Context) error {
			now, err := e.served(port)
			if err == nil && now == serial {
				err = fmt.Errorf("port %s shows the old certificate", port)
			}
			return err
		}))
	}
	if _, err := e.Umiak(e.soon(), "certificate", "rotate", "nothing"); err == nil ||
		!strings.Contains(err.Error(), `no certificate "nothing"`) {
		t.Errorf("an unknown name: %v", err)
	}
	e.controllersWork("one")
	p.check("rotate")

	// rotate-ca begins: everything at once, without a restart.
	out, err = e.Umiak(e.soon(), "certificate", "rotate-ca")
	e.must(err)
	if !strings.Contains(out, "systemctl restart umiak") || strings.Count(out, "being replaced") != 5 {
		t.Errorf("rotate-ca says:\n%s", out)
	}
	if status, err := e.Umiak(e.soon(), "certificate", "rotate-ca", "--status"); err != nil ||
		!strings.HasPrefix(out, status) {
		t.Errorf("--status: %v\n%s", err, status)
	}
	both := e.admin()
	newRoot, isBoth := bytes.CutSuffix(both.CAData, oldRoot)
	if !isBoth || len(newRoot) == 0 {
		t.Fatalf("the kubeconfig trusts\n%s", both.CAData)
	}
	p.probe("who trusts only the new CA", e.asks(trusting(both, newRoot)))
	endOldRoot := p.probe("who trusts only the old CA", e.asks(trusting(both, oldRoot)))
	p.probe("a kubeconfig of now", e.asks(both))
	e.controllersWork("two")
	for what, args := range map[string][]string{
		"has not been restarted": {"rotate-ca", "--finish", "--force"},
		"under way already":      {"rotate-ca", "client-ca"},
		"there are server-ca":    {"rotate-ca", "x"},
	} {
		if _, err := e.Umiak(e.soon(), append([]string{"certificate"}, args...)...); err == nil ||
			!strings.Contains(err.Error(), what) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if e.PID() != pid {
		t.Error("umiak was restarted by somebody")
	}
	p.check("rotate-ca")

	// The announced restart.
	p.restart()
	newToken := e.accountToken("default")
	if signer(t, newToken) == signer(t, oldToken) {
		t.Error("tokens are signed with the old key")
	}
	p.probe("a token of now", e.asks(withToken(both, newToken)))
	e.controllersWork("three")
	p.check("after the restart")

	// finish
	endLogs()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		if _, err := e.Umiak(ctx, "certificate", "rotate-ca", "--finish"); err == nil ||
			!strings.Contains(err.Error(), e.ns+"/lasting") {
			return fmt.Errorf("finish with a token in use: %w", err)
		}
		return nil
	}))
	endLasting()
	e.must(e.Kube.CoreV1().Secrets(e.ns).Delete(e.soon(), "lasting", metav1.DeleteOptions{}))
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err = e.Umiak(ctx, "certificate", "rotate-ca", "--finish")
		return err
	}))
	// These had their time: it is over at the very moment of the finish.
	endOld()
	endToken()
	endOldRoot()
	p.mu.Lock()
	p.failed = slices.DeleteFunc(p.failed, func(f string) bool {
		return strings.HasPrefix(f, "who trusts only the old CA") || strings.HasPrefix(f, "a kubeconfig of before") ||
			strings.HasPrefix(f, "a token of before")
	})
	p.mu.Unlock()
	if strings.Count(out, "finished") != 5 {
		t.Errorf("finish says:\n%s", out)
	}
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		if e.asks(trusting(both, oldRoot))(ctx) == nil {
			return errors.New("who trusts only the old CA is still served with a chain to it")
		}
		if err := e.asks(trusting(first, newRoot))(ctx); !errors.Is(err, errUnauthorized) {
			return fmt.Errorf("the old client certificate is still taken: %w", err)
		}
		return nil
	}))
	if data := string(e.admin().CAData); data != string(newRoot) {
		t.Errorf("the kubeconfig trusts\n%s", data)
	}
	e.Cluster.Kube = nil // this one trusts the old CA
	e.must(e.Connect())
	p.probe("logs of a pod, later", logs(e.Kube.CoreV1().Pods(e.ns)))
	e.controllersWork("four")

	// The old ServiceAccount key is let go by the next restart, and nothing needs it.
	p.restart()
	if err := e.asks(withToken(both, oldToken))(e.soon()); !errors.Is(err, errUnauthorized) {
		t.Errorf("a token of the old key: %v", err)
	}
	e.controllersWork("five")
	p.check("after the finish")
	if now := e.containerProcesses(); !subset(containers, now) {
		t.Errorf("containers of before were\n%s\nand are\n%s", strings.Join(containers, "\n"), strings.Join(now, "\n"))
	}
	t.Logf("%d requests", p.count.Load())

	// Without a running umiak.
	e.must(e.Stop(e.within(40 * time.Second)))
	out, err = e.Umiak(e.soon(), "certificate", "rotate", "--new-keys", "scheduler")
	e.must(err)
	if _, err := os.Stat(e.M.Host("/var/lib/umiak/server/pki/scheduler.key")); !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(out, "when it starts: scheduler") {
		t.Errorf("%v, %s", err, out)
	}
}

func subset(part, of []string) bool {
	for _, s := range part {
		if !slices.Contains(of, s) {
			return false
		}
	}
	return true
}

// encryptionStatus is what `umiak secrets-encrypt status -o json` prints.
type encryptionStatus struct {
	WriteKey struct{ Name, Cipher string }
	ReadKeys []struct{ Name, Cipher string }
	Rotation string
	Loaded   *bool
	Stored   map[string]map[string]int
}

func (e *env) encryptionStatus() encryptionStatus {
	e.Helper()
	var s encryptionStatus
	out, err := e.Umiak(e.soon(), "secrets-encrypt", "status", "-o", "json")
	if out == "" {
		e.Fatal(err)
	}
	e.must(json.Unmarshal([]byte(out), &s))
	return s
}

func TestKeysOfSecretsAreRotatedAndKilledMeanwhile(t *testing.T) {
	t.Parallel()
	e := own(t, cluster.Options{Name: "keys", Images: []string{}})
	e.must(e.APIReady(e.soon()))
	e.must(e.ServiceAccount(e.soon(), "default"))
	e.namespace()
	secrets := e.Kube.CoreV1().Secrets(e.ns)
	text := func(i int) string {
		return fmt.Sprintf("k7Vq2-%x-%d", time.Now().Unix()/1e6, i) + strings.Repeat("z", 64)
	}
	const many = 500
	var g sync.WaitGroup
	var failed atomic.Value
	for w := range 10 {
		g.Go(func() {
			for i := w; i < many; i += 10 {
				s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)},
					StringData: map[string]string{"word": text(i)}}
				if _, err := secrets.Create(e.ctx, s, metav1.CreateOptions{}); err != nil {
					failed.Store(err)
				}
			}
		})
	}
	g.Wait()
	if err, _ := failed.Load().(error); err != nil {
		t.Fatal(err)
	}
	s := e.encryptionStatus()
	if s.Rotation != "none" || s.WriteKey.Name != "key1" || s.Stored["secrets"]["secretbox key1"] < many ||
		s.Loaded == nil || !*s.Loaded {
		t.Fatalf("%+v", s)
	}
	key := func() string {
		raw, err := os.ReadFile(e.M.Host(cluster.Dirs().EncryptionConfig()))
		e.must(err)
		return string(raw)
	}
	before := key()

	// A client reads and changes Secrets all the while.
	p := e.probes()
	n := 0
	p.probe("a Secret is read and changed", func(ctx context.Context) error {
		n++
		s, err := secrets.Get(ctx, fmt.Sprintf("s%d", n%many), getOptions)
		if err != nil {
			return err
		}
		if string(s.Data["word"]) != text(n%many) {
			return fmt.Errorf("%s reads as %q", s.Name, s.Data["word"])
		}
		s.Labels = map[string]string{"n": fmt.Sprint(n)}
		if _, err = secrets.Update(ctx, s, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
			return nil // the rotation has written it: as with any other writer
		}
		return err
	})
	// A tenant chooses how large objects are: in JSON with escapes, this one is beyond the API's limit.
	_, err := e.Kube.CoreV1().ConfigMaps(e.ns).Create(e.soon(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "large"}, Data: map[string]string{"text": strings.Repeat("<", 600<<10)},
	}, metav1.CreateOptions{})
	e.must(err)
	// The command is killed as soon as the new key is there. The server goes on.
	// The setting chooses the new key's type, as --key-type does.
	cmd := e.M.Command(e.ctx, "env", "UMIAK_SECRETS_ENCRYPTION_PROVIDER=aesgcm", "umiak", "secrets-encrypt", "rotate")
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	e.must(e.M.Start(cmd))
	prints := func(want string) {
		t.Helper()
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if s := said.String(); !strings.Contains(s, want) {
				return fmt.Errorf("rotate prints %q", s)
			}
			return nil
		}))
	}
	prints("aesgcm key2 was made")
	e.must(cmd.Process.Kill())
	_ = cmd.Wait()
	if _, err := e.Umiak(e.soon(), "secrets-encrypt", "rotate", "--key-type", "aescbc"); err == nil ||
		!strings.Contains(err.Error(), "is under way") {
		t.Errorf("another type: %v", err)
	}
	// The same command attaches to it.
	said = lockedBuffer{}
	cmd = e.M.Command(e.ctx, "umiak", "secrets-encrypt", "rotate")
	cmd.Stdout, cmd.Stderr = &said, &said
	e.must(e.M.Start(cmd))
	prints("going on with the rotation to aesgcm key2")
	prints("aesgcm key2 is written with from now on")
	if out, _ := e.Umiak(e.soon(), "secrets-encrypt", "status"); !strings.Contains(out, "goes on with it") {
		t.Errorf("status of a rotation:\n%s", out)
	} else {
		t.Logf("status:\n%s", out)
	}
	s = e.encryptionStatus()
	if s.Rotation == "none" || s.WriteKey.Cipher != "aesgcm" || len(s.ReadKeys) != 2 {
		t.Errorf("under way: %+v", s)
	}
	p.check("while it is under way")
	// The server is killed while it rewrites. It continues when it has started again.
	prints("rewritten")
	p.excused.Store(true)
	e.must(e.Kill())
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "goes on when it runs again") {
		t.Errorf("the server was killed: %v, %s", err, said.String())
	}
	if out, err := e.Umiak(e.soon(), "secrets-encrypt", "rotate"); err == nil ||
		!strings.Contains(err.Error(), "umiak is not running") {
		t.Errorf("without a server: %s, %v", out, err)
	}
	e.must(e.Start())
	e.must(e.APIReady(e.soon()))
	p.excused.Store(false)
	e.must(cluster.Eventually(e.within(2*patience), func(context.Context) error {
		if s = e.encryptionStatus(); s.Rotation != "none" || s.Loaded == nil || !*s.Loaded {
			return fmt.Errorf("the keys are %+v", s)
		}
		return nil
	}))
	p.check("while it went on")
	if s.Rotation != "none" || len(s.ReadKeys) != 1 || s.WriteKey.Name != "key2" ||
		s.Stored["secrets"]["aesgcm key2"] < many || len(s.Stored["secrets"]) != 1 || len(s.Stored["configmaps"]) != 1 {
		t.Errorf("in the end: %+v", s)
	}
	all, err := secrets.List(e.ctx, metav1.ListOptions{})
	e.must(err)
	if len(all.Items) < many {
		t.Errorf("%d Secrets", len(all.Items))
	}
	for i := range many {
		j := slices.IndexFunc(all.Items, func(s corev1.Secret) bool { return s.Name == fmt.Sprintf("s%d", i) })
		if j < 0 || string(all.Items[j].Data["word"]) != text(i) {
			t.Fatalf("s%d is lost or reads differently", i)
		}
	}
	// No text and no key is where it should not be.
	_, rest, _ := strings.Cut(before, "secret: ")
	oldSecret := strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0])
	_, rest, _ = strings.Cut(key(), "secret: ")
	newSecret := strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0])
	if len(oldSecret) < 40 || len(newSecret) < 40 || oldSecret == newSecret {
		t.Fatal("the keys were not found")
	}
	file, err := os.Stat(e.M.Host(cluster.Dirs().EncryptionConfig()))
	e.must(err)
	if file.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", file.Mode().Perm())
	}
	e.eachFile(cluster.Dirs().Data, func(path string, raw []byte, _ fs.FileInfo) {
		if bytes.Contains(raw, []byte(text(7)[:16])) {
			t.Errorf("a Secret stands in %s", path)
		}
		if bytes.Contains(raw, []byte(oldSecret)) || bytes.Contains(raw, []byte(newSecret)) &&
			!strings.HasSuffix(path, "encryption-config.yaml") {
			t.Errorf("a key stands in %s", path)
		}
	})
	log, err := os.ReadFile(e.LogFile())
	e.must(err)
	if s := said.String() + string(log); strings.Contains(s, oldSecret) || strings.Contains(s, newSecret) {
		t.Error("a key was printed")
	}
}
