// Package corefile turns the Corefile that a user wrote into the one that runs inside the agent.
//
// Users write what they would write for a CoreDNS pod. In the agent some of it means something else: the
// API server is reached by the agent's own connection, nothing may listen but port 53 on the node's DNS
// address, there is no /etc/coredns, and the resolvers are the host's. Rewrite makes those changes on
// the tokens of CoreDNS's own parser, so that quoting, nesting and snippets mean what they always mean.
// It is a pure function and imports nothing but that parser.
package corefile

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/coredns/caddy/caddyfile"
)

// Names of the directives that stand for upstream ones in the rewritten text; package dns registers them.
const (
	Kubernetes = "umiak_kubernetes"
	Metrics    = "umiak_metrics"
	Loop       = "umiak_loop"
	Nowhere    = "umiak_nowhere" // in place of a forward without a server
)

// Order is the order in which plugins see a query, a subset of upstream's plugin.cfg.
func Order() []string {
	return []string{"bind", Metrics, "errors", "log", "loadbalance", "rewrite", "cache", "template", "hosts",
		Kubernetes, Loop, "forward", Nowhere}
}

// known are the directives that a user may write.
var known = []string{"bind", "cache", "errors", "forward", "health", "hosts", "kubernetes", "log", "loop",
	"loadbalance",
	"prometheus", "ready", "reload", "rewrite", "template"}

// Limits that a Corefile from the cluster must keep to. A ConfigMap holds 1 MiB at most.
const (
	maxTokens  = 200_000
	maxImports = 1_000
)

// Options are the facts of this node.
type Options struct {
	// Bind are the addresses to listen on, Port the port there: what is sent to port 53 is led to it.
	Bind []netip.Addr
	Port uint16
	// Own are addresses that lead back to this server: never forwarded to.
	Own []netip.Addr
	// Upstreams replace /etc/resolv.conf in forward, each as ADDRESS or ADDRESS:PORT.
	Upstreams []string
	// Handle is given to umiak's own directives, which find the server by it.
	Handle string
	// Files are the files that `import` finds, by absolute path.
	Files map[string]string
	// Without are the units that are left out; see Units.
	Without map[Unit]bool
}

// Result is the rewritten text, and a description of the changes.
type Result struct {
	Text string
	// Notes say in words what of the input has no effect here.
	Notes []string
	// Forwards is true if any name outside the cluster can be resolved.
	Forwards bool
}

// Rewrite returns the Corefile to run. An error is a *Error where the place is known.
func Rewrite(text string, o Options) (Result, error) {
	tokens, _, err := expand(text, o)
	if err != nil {
		return Result{}, err
	}
	for _, t := range tokens {
		// The agent's environment may hold a join token; a ConfigMap must not be able to read it out.
		if strings.Contains(t.Text, "{$") || strings.Contains(t.Text, "{%") {
			return Result{}, &Error{t.File, t.Line, fmt.Errorf("%q: environment variables cannot be used", t.Text)}
		}
	}
	var flat strings.Builder
	if err := write(&flat, tokens, ""); err != nil {
		return Result{}, err
	}
	r := rewriter{o: o, places: places(tokens), zones: map[string]bool{}}
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(flat.String()), known)
	if err != nil {
		return Result{}, r.parseError(err)
	}
	if len(blocks) == 0 {
		return Result{}, errors.New("no server block")
	}
	var out strings.Builder
	for _, b := range blocks {
		if err := r.block(&out, b); err != nil {
			return Result{}, err
		}
	}
	return Result{Text: out.String(), Notes: r.notes, Forwards: r.forwards}, nil
}

type rewriter struct {
	o        Options
	places   []place         // of the flattened text's lines
	zones    map[string]bool // that have a block
	notes    []string
	forwards bool
}

func (r *rewriter) note(format string, a ...any) {
	if n := fmt.Sprintf(format, a...); !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

func (r *rewriter) block(out *strings.Builder, b caddyfile.ServerBlock) error {
	first := firstLine(b)
	if len(b.Keys) == 0 {
		return errors.New("a server block has no zone")
	}
	keys := make([]string, 0, len(b.Keys))
	for _, k := range b.Keys {
		k, err := r.key(k)
		if err != nil {
			return r.at(first, err)
		}
		keys = append(keys, k)
	}
	return writeBlock(out, keys, func() error {
		if len(r.o.Bind) > 0 {
			out.WriteString("    bind")
			for _, a := range r.o.Bind {
				out.WriteString(" " + a.String())
			}
			out.WriteByte('\n')
		}
		nowhere := false
		for _, name := range slices.Sorted(maps.Keys(b.Tokens)) {
			for _, s := range stanzas(name, b.Tokens[name]) {
				line := s[0].Line
				s, err := r.stanza(name, s)
				if err != nil {
					return r.at(line, err)
				}
				if err := write(out, s, "    "); err != nil {
					return err
				}
				nowhere = nowhere || name == "forward" && s == nil
			}
		}
		if nowhere {
			out.WriteString("    " + Nowhere + "\n")
		}
		return nil
	})
}

// key returns a key of a server block with the port that is listened on, if port 53 on the node's own address can
// serve it.
func (r *rewriter) key(k string) (string, error) {
	for _, c := range k {
		if c <= ' ' || c > '~' || strings.ContainsRune(`(){},;"'$%\`, c) {
			return "", fmt.Errorf("server block %q is not a zone", k)
		}
	}
	if k == "" || k == "import" {
		return "", fmt.Errorf("server block %q is not a zone", k)
	}
	scheme, zone, ok := strings.Cut(k, "://")
	if ok && scheme != "dns" {
		return "", fmt.Errorf("server block %q: only dns:// is served on a node", k)
	}
	if !ok {
		zone = k
	}
	// As CoreDNS reads it: a number after the last colon is a port, also behind an IPv6 range (fd00::/64:53).
	if i := strings.LastIndexByte(zone, ':'); i >= 0 {
		if port, err := strconv.Atoi(zone[i+1:]); err == nil && port != 53 {
			return "", fmt.Errorf("server block %q: only port 53 is served on a node", k)
		} else if err == nil || zone[i+1:] == "" {
			zone = zone[:i]
		}
	}
	if zone == "" {
		zone = "." // as CoreDNS reads ":53"
	}
	if strings.Contains(zone, "/") && !strings.Contains(zone, ".") && !strings.Contains(zone, ":") {
		return "", fmt.Errorf("server block %q is not a zone", k)
	}
	name := strings.ToLower(strings.TrimSuffix(zone, "."))
	if r.zones[name] {
		return "", fmt.Errorf("server block %q: another block serves this zone already", k)
	}
	r.zones[name] = true
	return fmt.Sprintf("%s:%d", zone, r.o.Port), nil
}

// stanza returns the tokens to run in place of one occurrence of a directive, nil for none.
func (r *rewriter) stanza(name string, s []caddyfile.Token) ([]caddyfile.Token, error) {
	switch name {
	case "bind":
		r.note("bind is set by the node")
		return nil, nil
	case "health", "ready", "reload":
		// What they do is done by the process: its readiness and status, and a watch of the ConfigMap.
		// As they are, each would open an unauthenticated port, or poll.
		return nil, nil
	case "prometheus":
		return []caddyfile.Token{with(s[0], Metrics)}, nil
	case "loop":
		return []caddyfile.Token{with(s[0], Loop), with(s[0], r.o.Handle)}, nil
	case "kubernetes":
		return r.kubernetes(s)
	case "forward":
		return r.forward(s)
	}
	return s, nil
}

// kubernetes drops what chooses or limits the connection to the API server: it is the agent's own.
func (r *rewriter) kubernetes(s []caddyfile.Token) ([]caddyfile.Token, error) {
	args, props, err := split(s)
	if err != nil {
		return nil, err
	}
	kept := props[:0:0]
	for _, p := range props {
		switch p[0].Text {
		case "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight",
			"startup_timeout":
			r.note("kubernetes: %s has no effect, the node's own connection is used", p[0].Text)
		case "multicluster":
			return nil, errors.New("kubernetes: multicluster is not supported")
		default:
			kept = append(kept, p)
		}
	}
	head := []caddyfile.Token{with(s[0], Kubernetes), with(s[0], r.o.Handle)}
	return join(append(head, args...), kept), nil
}

// forward puts in the host's resolvers and takes out whatever leads back here. Without any resolver left
// the stanza goes, and names outside the cluster get SERVFAIL at once instead of after a time-out.
func (r *rewriter) forward(s []caddyfile.Token) ([]caddyfile.Token, error) {
	args, props, err := split(s)
	if err != nil {
		return nil, err
	}
	if len(args) < 2 {
		return nil, errors.New("forward needs a zone and where to forward to")
	}
	var to []caddyfile.Token
	seen := map[string]bool{}
	for _, a := range args[1:] {
		targets := []string{a.Text}
		if strings.HasPrefix(a.Text, "/") {
			targets = r.o.Upstreams
			if path.Base(a.Text) != "resolv.conf" {
				return nil, fmt.Errorf("forward: %q: of files, only /etc/resolv.conf can be named", a.Text)
			}
		}
		for _, t := range targets {
			if r.own(t) {
				r.note("forward: %s is this server itself, left out", t)
				continue
			}
			if !seen[t] {
				seen[t] = true
				to = append(to, with(a, t))
			}
		}
	}
	if len(to) == 0 {
		r.note("forward %s: there is no name server to forward to", args[0].Text)
		return nil, nil
	}
	// More than this the plugin refuses; a resolver in libc looks at three.
	to = to[:min(len(to), 15)]
	hasCheck := slices.ContainsFunc(props, func(p []caddyfile.Token) bool { return p[0].Text == "health_check" })
	if !hasCheck {
		// Upstream asks a dead resolver twice a second, for ever; a box without internet should sleep.
		props = append(props, []caddyfile.Token{with(s[0], "health_check"), with(s[0], "5s")})
	}
	r.forwards = true
	return join(append([]caddyfile.Token{s[0], args[0]}, to...), props), nil
}

func (r *rewriter) own(target string) bool {
	if i := strings.Index(target, "://"); i >= 0 {
		target = target[i+3:]
	}
	port := uint16(53)
	a, err := netip.ParseAddr(strings.Trim(target, "[]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(target)
		if err != nil {
			return false // a host name
		}
		a, port = ap.Addr(), ap.Port()
		if port != 53 && port != r.o.Port {
			return false // another server on the same machine
		}
	}
	a = a.Unmap()
	if port == r.o.Port {
		return slices.Contains(r.o.Bind, a)
	}
	return slices.Contains(r.o.Own, a) || slices.Contains(r.o.Bind, a) || a.IsUnspecified()
}

func lex(name, text string) []caddyfile.Token {
	d := caddyfile.NewDispenser(name, strings.NewReader(text))
	var out []caddyfile.Token
	for d.Next() {
		out = append(out, caddyfile.Token{File: name, Line: d.Line(), Text: d.Val()})
	}
	return out
}

// stanzas cuts the tokens of a directive, which the parser joined, into its occurrences.
func stanzas(name string, tokens []caddyfile.Token) [][]caddyfile.Token {
	var out [][]caddyfile.Token
	depth := 0
	for i, t := range tokens {
		if i == 0 || depth == 0 && t.Text == name && newLine(tokens[i-1], t) {
			out = append(out, nil)
		}
		switch t.Text {
		case "{":
			depth++
		case "}":
			depth--
		}
		out[len(out)-1] = append(out[len(out)-1], t)
	}
	return out
}

// split takes a stanza apart: the arguments on its line, and the lines of its block.
func split(s []caddyfile.Token) (args []caddyfile.Token, props [][]caddyfile.Token, err error) {
	i := 1
	for ; i < len(s) && s[i].Text != "{"; i++ {
		args = append(args, s[i])
	}
	if i == len(s) {
		return args, nil, nil
	}
	for i++; i < len(s); i++ {
		t := s[i]
		switch {
		case t.Text == "}":
			if i != len(s)-1 {
				return nil, nil, fmt.Errorf("%s: text after the closing brace", s[0].Text)
			}
			return args, props, nil
		case t.Text == "{":
			return nil, nil, fmt.Errorf("%s: a block inside the block", s[0].Text)
		case len(props) == 0 || newLine(s[i-1], t):
			props = append(props, []caddyfile.Token{t})
		default:
			props[len(props)-1] = append(props[len(props)-1], t)
		}
	}
	return nil, nil, fmt.Errorf("%s: the block is not closed", s[0].Text)
}

// join is the reverse of split, on lines of its own.
func join(head []caddyfile.Token, props [][]caddyfile.Token) []caddyfile.Token {
	line := 1
	put := func(to []caddyfile.Token, ts ...caddyfile.Token) []caddyfile.Token {
		for _, t := range ts {
			t.File, t.Line = "", line
			to = append(to, t)
			line += strings.Count(t.Text, "\n") // as the parser counts
		}
		return to
	}
	out := put(nil, head...)
	if len(props) == 0 {
		return out
	}
	out = put(out, caddyfile.Token{Text: "{"})
	for _, p := range props {
		line++
		out = put(out, p...)
	}
	line++
	return put(out, caddyfile.Token{Text: "}"})
}

func with(t caddyfile.Token, text string) caddyfile.Token {
	t.Text = text
	return t
}

// newLine reports whether a token is on a new line, as the parser decides it: a quoted token ends on a later line
// than it begins.
func newLine(prev, t caddyfile.Token) bool {
	return prev.File != t.File || prev.Line+strings.Count(prev.Text, "\n") < t.Line
}

func write(out *strings.Builder, tokens []caddyfile.Token, indent string) error {
	for i, t := range tokens {
		switch {
		case i == 0 || newLine(tokens[i-1], t):
			if i > 0 {
				out.WriteByte('\n')
			}
			out.WriteString(indent)
		default:
			out.WriteByte(' ')
		}
		q, err := quote(t.Text)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", t.File, t.Line, err)
		}
		out.WriteString(q)
	}
	if len(tokens) > 0 {
		out.WriteByte('\n')
	}
	return nil
}

// quote writes a token so that the lexer reads it back as it is. Inside quotes only the quote can be
// escaped, so a few texts with backslashes have no quoted form; they never make sense in a Corefile.
func quote(s string) (string, error) {
	if s != "" && s[0] != '"' && !strings.ContainsFunc(s,
		func(r rune) bool { return r == '#' || r == '\uFEFF' || unicode.IsSpace(r) }) {
		return s, nil
	}
	q := `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	if back := lex("", q); len(back) != 1 || back[0].Text != s {
		return "", fmt.Errorf("%q: a backslash cannot stand before a quote", s)
	}
	return q, nil
}

// DropForward takes the forward stanzas out of a text that Rewrite returned.
func DropForward(text string) (Result, error) {
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), Order())
	if err != nil {
		return Result{}, fmt.Errorf("parse rewritten Corefile: %w", err)
	}
	var out strings.Builder
	for _, b := range blocks {
		if t := b.Tokens["forward"]; len(t) > 0 {
			delete(b.Tokens, "forward")
			b.Tokens[Nowhere] = []caddyfile.Token{with(t[0], Nowhere)}
		}
		if err := writeBlock(&out, b.Keys, func() error {
			for _, name := range slices.Sorted(maps.Keys(b.Tokens)) {
				if err := write(&out, b.Tokens[name], "    "); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return Result{}, err
		}
	}
	return Result{Text: out.String()}, nil
}

func writeBlock(out *strings.Builder, keys []string, body func() error) error {
	for i, k := range keys {
		q, err := quote(k)
		if err != nil {
			return err
		}
		if i > 0 {
			out.WriteByte(' ')
		}
		out.WriteString(q)
	}
	out.WriteString(" {\n")
	if err := body(); err != nil {
		return err
	}
	out.WriteString("}\n")
	return nil
}
