package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// joining are attempts at each path of the join API with the node's certificate and password: for itself and under
// another's name, with another's password and none.
func (i *intruder) joining() (out []func(context.Context) error) {
	raw, err := os.ReadFile(i.from.M.Host(cluster.Dirs().NodePassword()))
	i.must(err)
	password := strings.TrimSpace(string(raw))
	for _, path := range []string{joinwire.NodePath, joinwire.RenewPath, joinwire.CheckPath, joinwire.TaintsPath,
		joinwire.ServerPath, joinwire.ServerCheckPath, joinwire.Prefix, joinwire.Prefix + "x"} {
		for scope, c := range map[string]struct{ name, password string }{"own": {i.node, password},
			"other": {i.victim, password}, "guessed": {i.node, strings.Repeat("p", 32)}, "empty": {i.node, ""}} {
			id := newIdentity(i.T, c.name, i.from.M.IP)
			id.req.Password = c.password
			var body any = id.req
			switch path {
			case joinwire.TaintsPath:
				if c.name != i.node {
					continue // there is no name in it: it is the certificate's
				}
				body = joinwire.TaintsRequest{Password: c.password}
			case joinwire.ServerPath, joinwire.ServerCheckPath:
				body = joinwire.ServerRequest{Name: c.name, Password: c.password, Datastore: joinwire.Etcd,
					Peer: i.from.M.IP + ":2380"}
			}
			text, err := json.Marshal(body)
			i.must(err)
			for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodPut, http.MethodDelete} {
				out = append(out, func(ctx context.Context) error {
					code, answer, err := i.ask(ctx, method, path, "application/json", text)
					if err != nil {
						return fmt.Errorf("%s: %s %s: %w", i.who, method, path, err)
					}
					if code/100 == 5 {
						return fmt.Errorf("%s: %s %s as %s: %d %s", i.who, method, path, scope, code, answer)
					}
					i.record("join:"+path, scope, method, code == http.StatusOK)
					return nil
				})
			}
		}
	}
	return out
}

// tunnel tries to open one, which gives a node the connections of servers to it.
func (i *intruder) tunnel() {
	i.Helper()
	raw, err := i.from.M.Dial(i.soon(), "tcp", net.JoinHostPort(i.M.IP, "6443"))
	i.must(err)
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{i.cert},
		NextProtos: []string{"http/1.1"}}) //nolint:gosec // an attacker does not care
	defer c.Close()
	i.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
	_, err = fmt.Fprintf(c, "GET %s?node=%s HTTP/1.1\r\nHost: kubernetes\r\nConnection: Upgrade\r\nUpgrade: %s\r\nUmiak-Node: %[2]s\r\n\r\n", tunnelwire.Path, i.victim, tunnelwire.Protocol)
	i.must(err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	i.must(err)
	i.record("tunnel", "own", "open", resp.StatusCode == http.StatusSwitchingProtocols)
	// The name is the certificate's: the API server goes on reaching the victim's kubelet by the victim's own.
	_ = i.logs("beside", "c")
}

// kubelets are attempts at the port of another node's kubelet, and of the server's.
func (i *intruder) kubelets() (out []func(context.Context) error) {
	in := "/" + i.space + "/beside"
	for scope, host := range map[string]string{"agent's": i.victimIP(), "server's": i.M.IP} {
		for _, p := range []string{"/pods", "/runningpods/", "/stats/summary", "/metrics", "/metrics/cadvisor",
			"/metrics/probes", "/metrics/resource", "/configz", "/logs/", "/debug/pprof/", "/debug/flags/v",
			"/healthz", "/healthz/syncloop", "/statusz", "/flagz", "/containerLogs" + in + "/c", "/exec" + in +
				"/c?command=id&output=1", "/run" + in + "/c?cmd=id", "/attach" + in + "/c?output=1",
			"/portForward" + in, "/checkpoint" + in + "/c", "/"} {
			what := "kubelet:" + strings.Replace(strings.Split(p, "?")[0], in, "/NAMESPACE/POD", 1)
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				out = append(out, func(ctx context.Context) error {
					code, answer, err := i.askAt(ctx, "https://"+net.JoinHostPort(host, "10250"), method, p, "", nil)
					i.record(what, scope, method, err == nil && letIn(code, answer))
					return nil // who closes the connection has refused
				})
			}
		}
	}
	return out
}

func (i *intruder) victimIP() string {
	n, err := i.Kube.CoreV1().Nodes().Get(i.soon(), i.victim, getOptions)
	i.must(err)
	return n.Status.Addresses[0].Address
}

// sharing are attempts at the port by which nodes give each other images.
func (i *intruder) sharing(victim *cluster.Cluster) (out []func(context.Context) error) {
	digest := i.digests(victim)[images.App1]
	for scope, host := range map[string]string{"agent's": i.victimIP(), "server's": i.M.IP} {
		for what, path := range map[string]string{
			"root": "/v2/", "catalog": "/v2/_catalog", "tags": "/v2/app/tags/list?ns=registry.test",
			"manifest-by-digest": "/v2/app/manifests/" + digest + "?ns=registry.test",
			"manifest-by-tag":    "/v2/app/manifests/1?ns=registry.test", "blob": "/v2/app/blobs/" + digest +
				"?ns=registry.test", "blob-of-another-name": "/v2/evil/blobs/" + digest + "?ns=registry.test",
			"upload": "/v2/app/blobs/uploads/?ns=registry.test",
			"escape": "/v2/app/blobs/..%2f..%2f..%2fpki%2fagent-client.key?ns=registry.test", "path:/": "/",
			"path:/metrics": "/metrics", "path:/debug/pprof/": "/debug/pprof/",
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut,
				http.MethodPatch, http.MethodDelete} {
				out = append(out, func(ctx context.Context) error {
					code, _, err := i.askAt(ctx, "https://"+net.JoinHostPort(host, "5001"), method, path, "", nil)
					for code == http.StatusServiceUnavailable && err == nil { // it gives few at once
						code, _, err = i.askAt(ctx, "https://"+net.JoinHostPort(host, "5001"), method, path, "", nil)
					}
					i.record("sharing:"+what, scope, method, err == nil && code/100 == 2)
					return nil // who closes the connection has refused
				})
			}
		}
	}
	return out
}
