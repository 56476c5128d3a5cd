package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// cisControls is how many controls each section of the CIS Kubernetes Benchmark 1.12 has, but for section 5.
var cisControls = map[string]int{"1.1": 21, "1.2": 30, "1.3": 7, "1.4": 2, "2": 7, "3.1": 3, "3.2": 2, "4.1": 10,
	"4.2": 14, "4.3": 1}

// TestCISBenchmark: each control of the CIS Kubernetes Benchmark 1.12 passes on a running node, or docs/hardening.md
// says why it does not.
func TestCISBenchmark(t *testing.T) {
	e := share(t)
	b := e.cis()
	page, err := os.ReadFile("../docs/hardening.md")
	e.must(err)
	explained := cisExplained(t, string(page))
	ids := []string{"5.1.1", "5.1.2", "5.1.3", "5.1.4"}
	for section, n := range cisControls {
		for i := range n {
			ids = append(ids, fmt.Sprintf("%s.%d", section, i+1))
		}
	}
	checks := b.checks()
	for _, id := range ids {
		check, checked := checks[id]
		switch {
		case checked && explained[id]:
			t.Errorf("%s is checked, and docs/hardening.md says why it does not pass", id)
		case checked:
			if why := check(); why != "" {
				t.Errorf("%s: %s", id, why)
			}
		case !explained[id]:
			t.Errorf("%s is neither checked nor in docs/hardening.md", id)
		}
	}
}

// cisExplained are the controls that stand in the first column of a table: "1.2.3 word", "1.1.1-8 words", "1.2.23,
// 1.2.26 words".
func cisExplained(t *testing.T, page string) map[string]bool {
	out := map[string]bool{}
	one := regexp.MustCompile(`^((?:\d+\.)+)(\d+)(?:-(\d+))?$`)
	for _, line := range strings.Split(page, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 2 {
			continue
		}
		for _, word := range strings.Fields(strings.ReplaceAll(cells[1], ",", " ")) {
			m := one.FindStringSubmatch(word)
			if m == nil {
				continue
			}
			from, _ := strconv.Atoi(m[2])
			to := from
			if m[3] != "" {
				to, _ = strconv.Atoi(m[3])
			}
			for i := from; i <= to; i++ {
				out[m[1]+strconv.Itoa(i)] = true
			}
		}
	}
	if len(out) < 10 {
		t.Fatalf("docs/hardening.md has no table of controls: %v", out)
	}
	return out
}

// cisNode is what the benchmark looks at.
type cisNode struct {
	flags   map[string]string // of the API server that runs
	kubelet struct {
		Authentication struct {
			Anonymous struct {
				Enabled *bool `json:"enabled"`
			} `json:"anonymous"`
			X509 struct {
				ClientCAFile string `json:"clientCAFile"`
			} `json:"x509"`
		} `json:"authentication"`
		Authorization struct {
			Mode string `json:"mode"`
		} `json:"authorization"`
		ReadOnlyPort         int             `json:"readOnlyPort"`
		StreamingIdleTimeout string          `json:"streamingConnectionIdleTimeout"`
		EventRecordQPS       int             `json:"eventRecordQPS"`
		TLSCertFile          string          `json:"tlsCertFile"`
		TLSPrivateKeyFile    string          `json:"tlsPrivateKeyFile"`
		TLSCipherSuites      []string        `json:"tlsCipherSuites"`
		PodPidsLimit         int             `json:"podPidsLimit"`
		SeccompDefault       bool            `json:"seccompDefault"`
		FeatureGates         map[string]bool `json:"featureGates"`
	}
	strangers     int    // what a client without credentials gets
	encryption    string // the first provider of the encryption configuration
	auditPolicy   string
	wrongFiles    func(want fs.FileMode, paths ...string) string
	bindings      []cisBinding
	server, agent string
}

// cisBinding is who has which rights.
type cisBinding struct {
	Name, Role string
	Subjects   []string
	Rules      []cisRule
}

type cisRule struct {
	Verbs, APIGroups, Resources []string
}

// cis reads a running server.
func (e *env) cis() *cisNode {
	e.Helper()
	b := &cisNode{flags: map[string]string{}, server: cluster.Dirs().Server(), agent: cluster.Dirs().Agent()}
	// As text the separator is random, so that no program reads it.
	raw, err := e.Kube.Discovery().RESTClient().Get().AbsPath("/flagz").SetHeader("Accept",
		"application/json;g=config.k8s.io;v=v1beta1;as=Flagz").DoRaw(e.soon())
	e.must(err)
	var running struct {
		Flags map[string]string `json:"flags"`
	}
	e.must(json.Unmarshal(raw, &running))
	for name, value := range running.Flags {
		b.flags[name] = strings.Trim(value, "[]")
	}
	e.kubeletConfig(&b.kubelet)
	read := func(flag string) string {
		raw, err := os.ReadFile(e.hostPath(b.flags[flag]))
		e.must(err)
		return string(raw)
	}
	if m := regexp.MustCompile(`(?s)providers.*?(secretbox|aesgcm|aescbc|kms|identity)`).FindStringSubmatch(read("encryption-provider-config")); m != nil {
		b.encryption = m[1]
	}
	b.auditPolicy = read("audit-policy-file")
	b.strangers, _, err = e.strangerGets("https", netip.MustParseAddrPort("127.0.0.1:6443"), "/version")
	e.must(err)
	b.wrongFiles = e.wrongFiles
	b.bindings = e.bindings()
	return b
}

// kubeletConfig decodes the configuration with which the node's kubelet runs, a KubeletConfiguration.
func (e *env) kubeletConfig(into any) {
	e.Helper()
	var c struct {
		Kubelet json.RawMessage `json:"kubeletconfig"`
	}
	e.must(json.Unmarshal([]byte(e.kubectl("get", "--raw", "/api/v1/nodes/"+e.M.Name+"/proxy/configz")), &c))
	e.must(json.Unmarshal(c.Kubelet, into))
}

// wrongFiles says which files are not root's or may be more than a mode allows.
func (e *env) wrongFiles(want fs.FileMode, paths ...string) string {
	var wrong []string
	for _, p := range paths {
		found, err := filepath.Glob(e.hostPath(p))
		if err != nil || len(found) == 0 {
			wrong = append(wrong, p+" is not there")
		}
		for _, f := range found {
			st, err := os.Stat(f)
			if err != nil {
				wrong = append(wrong, err.Error())
				continue
			}
			if owner := st.Sys().(*syscall.Stat_t); owner.Uid != 0 || owner.Gid != 0 || st.Mode().Perm()&^want != 0 {
				wrong = append(wrong, fmt.Sprintf("%s has mode %o, owner %d:%d", filepath.Base(f), st.Mode().Perm(),
					owner.Uid, owner.Gid))
			}
		}
	}
	return strings.Join(wrong, "; ")
}

// bindings are the ClusterRoleBindings with the rules of their roles, but for those that upstream makes.
func (e *env) bindings() (out []cisBinding) {
	var list struct {
		Items []struct {
			Kind     string
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			RoleRef  struct{ Name string }
			Subjects []struct{ Kind, Name string }
			Rules    []cisRule
		}
	}
	e.must(json.Unmarshal([]byte(e.kubectl("get", "clusterroles,clusterrolebindings", "-o", "json")), &list))
	rules := map[string][]cisRule{}
	for _, i := range list.Items {
		if i.Kind == "ClusterRole" {
			rules[i.Metadata.Name] = i.Rules
		}
	}
	for _, i := range list.Items {
		if i.Kind != "ClusterRoleBinding" || strings.HasPrefix(i.Metadata.Name, "system:") {
			continue
		}
		b := cisBinding{Name: i.Metadata.Name, Role: i.RoleRef.Name, Rules: rules[i.RoleRef.Name]}
		for _, s := range i.Subjects {
			b.Subjects = append(b.Subjects, s.Kind+" "+s.Name)
		}
		out = append(out, b)
	}
	return out
}

// holders are the bindings, but the administrators', whose rules a test finds fault with.
func (b *cisNode) holders(bad func(cisRule) bool) string {
	var out []string
	for _, x := range b.bindings {
		if x.Role != "cluster-admin" && x.Role != "system:kubelet-api-admin" && slices.ContainsFunc(x.Rules, bad) {
			out = append(out, x.Name)
		}
	}
	return strings.Join(out, ", ")
}

// unless is the reason why a control does not pass.
func unless(ok bool, format string, a ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, a...)
}

// checks are the controls, each with what is wrong, or "".
func (b *cisNode) checks() map[string]func() string {
	out := map[string]func() string{}
	flag := func(id, name string, ok func(v string) bool) {
		out[id] = func() string { return unless(ok(b.flags[name]), "--%s=%s", name, b.flags[name]) }
	}
	set := func(v string) bool { return v != "" }
	is := func(want string) func(string) bool { return func(v string) bool { return v == want } }
	atLeast := func(n int) func(string) bool {
		return func(v string) bool { got, err := strconv.Atoi(v); return err == nil && got >= n }
	}
	has := func(want string) func(string) bool {
		return func(v string) bool { return slices.Contains(strings.FieldsFunc(v, listSep), want) }
	}
	hasNot := func(want string) func(string) bool { return func(v string) bool { return !has(want)(v) } }
	files := func(id string, mode fs.FileMode, paths ...string) {
		out[id] = func() string { return b.wrongFiles(mode, paths...) }
	}

	files("1.1.9", 0o600, b.agent+"/cni/*.conflist")
	files("1.1.10", 0o600, b.agent+"/cni/*.conflist")
	files("1.1.11", 0o700, b.server+"/db")
	files("1.1.13", 0o600, b.server+"/admin.kubeconfig")
	files("1.1.14", 0o600, b.server+"/admin.kubeconfig")
	for id, name := range map[string]string{"1.1.15": "scheduler", "1.1.16": "scheduler",
		"1.1.17": "controller-manager", "1.1.18": "controller-manager"} {
		files(id, 0o600, b.server+"/kubeconfigs/"+name+".kubeconfig")
	}
	files("1.1.19", 0o700, b.server+"/pki")
	files("1.1.20", 0o644, b.server+"/pki/*.crt")
	files("1.1.21", 0o600, b.server+"/pki/*.key")

	out["1.2.1"] = func() string { return unless(b.strangers == 401, "a stranger gets %d", b.strangers) }
	flag("1.2.2", "token-auth-file", is(""))
	out["1.2.4"] = func() string {
		return unless(set(b.flags["kubelet-client-certificate"]) && set(b.flags["kubelet-client-key"]),
			"no client certificate for kubelets")
	}
	flag("1.2.5", "kubelet-certificate-authority", set)
	flag("1.2.6", "authorization-mode", hasNot("AlwaysAllow"))
	flag("1.2.7", "authorization-mode", has("Node"))
	flag("1.2.8", "authorization-mode", has("RBAC"))
	flag("1.2.10", "enable-admission-plugins", hasNot("AlwaysAdmit"))
	flag("1.2.12", "disable-admission-plugins", hasNot("ServiceAccount"))
	flag("1.2.13", "disable-admission-plugins", hasNot("NamespaceLifecycle"))
	flag("1.2.14", "enable-admission-plugins", has("NodeRestriction"))
	flag("1.2.15", "profiling", is("false"))
	flag("1.2.16", "audit-log-path", set)
	flag("1.2.17", "audit-log-maxage", atLeast(30))
	flag("1.2.18", "audit-log-maxbackup", atLeast(10))
	flag("1.2.19", "audit-log-maxsize", atLeast(100))
	flag("1.2.20", "request-timeout", is("1m0s"))
	flag("1.2.21", "service-account-lookup", is("true"))
	flag("1.2.22", "service-account-signing-key-file", set) // its public key is followed, so the flag for that is empty
	out["1.2.24"] = func() string {
		return unless(set(b.flags["tls-cert-file"]) && set(b.flags["tls-private-key-file"]), "no certificate")
	}
	flag("1.2.25", "client-ca-file", set)
	flag("1.2.27", "encryption-provider-config", set)
	out["1.2.28"] = func() string {
		return unless(b.encryption == "secretbox", "the first provider is %q",
			b.encryption)
	}
	flag("1.2.29", "tls-cipher-suites", func(v string) bool {
		return v != "" &&
			weakSuite(strings.FieldsFunc(v, listSep)) == ""
	})

	// TestBenchmarkOfTheControllers of server/controlplane sees to these: neither listens, so neither can be asked.
	for _, id := range []string{"1.3.1", "1.3.2", "1.3.3", "1.3.4", "1.3.5", "1.3.6", "1.4.1"} {
		out[id] = func() string { return "" }
	}
	out["3.2.1"] = func() string { return unless(len(b.auditPolicy) > 0, "no audit policy") }
	b.kubeletChecks(out, files)
	b.rightsChecks(out)
	return out
}

func listSep(r rune) bool { return r == ',' || r == ' ' }

// weakSuite is a cipher suite without forward secrecy or authenticated encryption.
func weakSuite(suites []string) string {
	for _, s := range suites {
		if !strings.HasPrefix(s, "TLS_ECDHE_") || !strings.Contains(s, "_GCM_") && !strings.Contains(s, "_CHACHA20_") {
			return s
		}
	}
	return ""
}

func (b *cisNode) kubeletChecks(out map[string]func() string,
	files func(id string, mode fs.FileMode, paths ...string)) {
	k := &b.kubelet
	rotates, given := k.FeatureGates["RotateKubeletServerCertificate"]
	for id, ok := range map[string]bool{
		"4.2.1":  k.Authentication.Anonymous.Enabled != nil && !*k.Authentication.Anonymous.Enabled,
		"4.2.2":  k.Authorization.Mode == "Webhook",
		"4.2.3":  k.Authentication.X509.ClientCAFile != "",
		"4.2.4":  k.ReadOnlyPort == 0,
		"4.2.5":  k.StreamingIdleTimeout != "0s",
		"4.2.8":  k.EventRecordQPS > 0,
		"4.2.9":  k.TLSCertFile != "" && k.TLSPrivateKeyFile != "",
		"4.2.11": !given || rotates,
		"4.2.12": len(k.TLSCipherSuites) > 0 && weakSuite(k.TLSCipherSuites) == "",
		"4.2.13": k.PodPidsLimit > 0,
		"4.2.14": k.SeccompDefault,
	} {
		out[id] = func() string { return unless(ok, "%+v", *k) }
	}
	files("4.1.5", 0o600, b.agent+"/*.kubeconfig")
	files("4.1.6", 0o600, b.agent+"/*.kubeconfig")
	files("4.1.7", 0o644, k.Authentication.X509.ClientCAFile)
	files("4.1.8", 0o644, k.Authentication.X509.ClientCAFile)
}

func (b *cisNode) rightsChecks(out map[string]func() string) {
	out["5.1.1"] = func() string {
		var who []string
		for _, x := range b.bindings {
			if x.Role == "cluster-admin" {
				who = append(who, x.Subjects...)
			}
		}
		slices.Sort(who)
		return unless(slices.Equal(who, []string{"Group system:masters", "Group umiak:admins"}),
			"cluster-admin is bound to %v", who)
	}
	out["5.1.2"] = func() string {
		who := b.holders(func(r cisRule) bool { return slices.Contains(r.Resources, "secrets") })
		return unless(who == "", "%s: Secrets", who)
	}
	out["5.1.3"] = func() string {
		who := b.holders(func(r cisRule) bool {
			return slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") ||
				slices.Contains(r.APIGroups, "*")
		})
		return unless(who == "", "%s: wildcards", who)
	}
	out["5.1.4"] = func() string {
		who := b.holders(func(r cisRule) bool {
			return slices.Contains(r.Resources, "pods") && slices.Contains(r.Verbs, "create")
		})
		return unless(who == "", "%s: create pods", who)
	}
}
