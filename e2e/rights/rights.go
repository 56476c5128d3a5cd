package rights

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Right is what an identity may do with a thing.
type Right struct {
	Who   string // the identity
	What  string // a resource as Kubernetes names it, or another thing such as path:/healthz
	Scope string // which of them, see Found
	Verbs string // sorted, with spaces between
	Why   string // what it is for; not compared
}

func (r Right) key() Right { r.Why = ""; return r }

// Found collects what a test finds: each thing is tried with each verb in several scopes, such as own and other.
type Found map[tried]map[string]bool

type tried struct{ who, what, verb string }

// Add records an attempt.
func (f Found) Add(who, what, scope, verb string, allowed bool) {
	k := tried{who, what, verb}
	if f[k] == nil {
		f[k] = map[string]bool{}
	}
	f[k][scope] = f[k][scope] || allowed
}

// Any is the scope of what is allowed wherever it was tried; others are joined by plus signs.
const Any = "any"

// List returns what was allowed.
func (f Found) List() []Right {
	verbs := map[Right][]string{}
	for k, scopes := range f {
		var in []string
		for s, allowed := range scopes {
			if allowed {
				in = append(in, s)
			}
		}
		if len(in) == 0 {
			continue
		}
		slices.Sort(in)
		scope := strings.Join(in, "+")
		if len(in) == len(scopes) {
			scope = Any
		}
		r := Right{Who: k.who, What: k.what, Scope: scope}
		verbs[r] = append(verbs[r], k.verb)
	}
	var out []Right
	for r, list := range verbs {
		r.Verbs = strings.Join(slices.Sorted(slices.Values(list)), " ")
		out = append(out, r)
	}
	slices.SortFunc(out, compare)
	return out
}

func compare(a, b Right) int {
	return cmp.Or(cmp.Compare(a.Who, b.Who), cmp.Compare(a.What, b.What), cmp.Compare(a.Scope, b.Scope),
		cmp.Compare(a.Verbs, b.Verbs))
}

// Parse reads a file: header are the lines before the first right.
func Parse(text string) (header string, list []Right, err error) {
	for line := range strings.Lines(text) {
		if t := strings.TrimSpace(line); t == "" || strings.HasPrefix(t, "#") {
			if len(list) == 0 {
				header += line
			}
			continue
		}
		right, why, _ := strings.Cut(line, "#")
		f := strings.Fields(right)
		if len(f) < 4 {
			return "", nil, fmt.Errorf("read rights: %q is none: WHO WHAT SCOPE VERBS # WHY", strings.TrimSpace(line))
		}
		list = append(list, Right{f[0], f[1], f[2], strings.Join(f[3:], " "), strings.TrimSpace(why)})
	}
	return header, list, nil
}

// Format writes a file.
func Format(header string, list []Right) string {
	var b strings.Builder
	b.WriteString(header)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t# %s\n", r.Who, r.What, r.Scope, r.Verbs, r.Why)
	}
	_ = w.Flush() // a strings.Builder takes everything
	return b.String()
}

// Explain gives rights the reasons of those in old that are about the same thing.
func Explain(list, old []Right) []Right {
	exact, near := map[Right]string{}, map[[2]string]string{}
	for _, r := range old {
		exact[r.key()], near[[2]string{r.Who, r.What}] = r.Why, r.Why
	}
	out := slices.Clone(list)
	for i, r := range out {
		out[i].Why = cmp.Or(exact[r.key()], near[[2]string{r.Who, r.What}])
	}
	return out
}

// Diff says in lines how got differs from want: + for a new right, - for one that is gone.
func Diff(want, got []Right) (out []string) {
	set := func(l []Right) map[Right]bool {
		m := map[Right]bool{}
		for _, r := range l {
			m[r.key()] = true
		}
		return m
	}
	w, g := set(want), set(got)
	all := maps.Clone(w)
	maps.Copy(all, g)
	for _, r := range slices.SortedFunc(maps.Keys(all), compare) {
		line := strings.Join([]string{r.Who, r.What, r.Scope, r.Verbs}, "  ")
		switch {
		case !w[r]:
			out = append(out, "+ "+line)
		case !g[r]:
			out = append(out, "- "+line)
		}
	}
	return out
}
