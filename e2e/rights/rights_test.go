package rights

import (
	"slices"
	"testing"
)

func TestFoundIsWrittenAndRead(t *testing.T) {
	f := Found{}
	for _, scope := range []string{"own", "other"} {
		f.Add("agent", "services", scope, "list", true)
		f.Add("agent", "services", scope, "get", true)
		f.Add("agent", "secrets", scope, "get", false)
		f.Add("kubelet", "secrets", scope, "get", scope == "own")
	}
	got := f.List()
	want := []Right{{Who: "agent", What: "services", Scope: Any, Verbs: "get list"},
		{Who: "kubelet", What: "secrets", Scope: "own", Verbs: "get"}}
	if !slices.Equal(got, want) {
		t.Fatalf("%+v", got)
	}
	explained := Explain(got, []Right{{"agent", "services", "own", "get", "the proxy"},
		{"kubelet", "secrets", "own", "get", "its Pods"}})
	if explained[0].Why != "the proxy" || explained[1].Why != "its Pods" {
		t.Errorf("%+v", explained)
	}
	const header = "# head\n\n"
	text := Format(header, explained)
	head, list, err := Parse(text)
	if err != nil || head != header || !slices.Equal(list, explained) {
		t.Errorf("%q: %q %+v %v", text, head, list, err)
	}
	if d := Diff(explained, got); len(d) != 0 {
		t.Errorf("the reason is compared: %q", d)
	}
	f.Add("kubelet", "secrets", "other", "get", true)
	if d := Diff(explained, f.List()); !slices.Equal(d,
		[]string{"+ kubelet  secrets  any  get", "- kubelet  secrets  own  get"}) {
		t.Errorf("%q", d)
	}
	if _, _, err := Parse("a b\n"); err == nil {
		t.Error("half a line is taken")
	}
}
