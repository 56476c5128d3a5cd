package manifest_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/server/addons/manifest"
)

// folder reads a real folder at times that the test chooses.
type folder struct {
	*testing.T
	*manifest.Folder
	dir string
	now time.Time
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	dir := t.TempDir()
	return &folder{t, manifest.NewFolder(dir), dir, time.Now()}
}

// after reads the folder when d has passed.
func (f *folder) after(d time.Duration) manifest.Scan {
	f.Helper()
	f.now = f.now.Add(d)
	s, err := f.Read(f.now)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

func (f *folder) put(name, data string) string {
	f.Helper()
	p := filepath.Join(f.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(data), 0o644)); err != nil {
		f.Fatal(err)
	}
	return p
}

func (f *folder) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// TestClock: only what is seen counts, whatever a file's times are.
func TestClock(t *testing.T) {
	f := newFolder(t)
	old := f.put("old.yaml", "a\n")
	f.must(os.Chtimes(old, time.Unix(1, 0), time.Unix(1, 0)))
	future := f.put("future.yaml", "a\n")
	f.must(os.Chtimes(future, time.Now().Add(1e6*time.Hour), time.Now().Add(1e6*time.Hour)))
	if s := f.after(0); len(s.Files) > 0 || len(s.Unsettled) != 2 {
		t.Errorf("at first sight: %v", s)
	}
	s := f.after(manifest.Settle)
	if len(s.Files) != 2 || !s.Changed.Equal(f.now.Add(-manifest.Settle)) {
		t.Errorf("later: %v", s)
	}
	f.put("old.yaml", "b\n") // as long as before
	f.must(os.Chtimes(old, time.Unix(1, 0), time.Unix(1, 0)))
	if s := f.after(time.Hour); s.Unsettled["old"] == "" || !s.Changed.Equal(f.now) {
		t.Errorf("after a change that its times do not show: %v", s)
	}
	f.must(os.Remove(future))
	if s := f.after(time.Hour); !s.Changed.Equal(f.now) {
		t.Error("what is taken away is no change")
	}
}

// TestWriters: a file that is open for writing is not read, however long nothing happens to it.
func TestWriters(t *testing.T) {
	f := newFolder(t)
	open := func(name string) *os.File {
		t.Helper()
		w, err := os.OpenFile(filepath.Join(f.dir, name), os.O_CREATE|os.O_WRONLY, 0o644)
		f.must(err)
		_, err = w.WriteString("half")
		f.must(err)
		return w
	}
	w := open("app.yaml")
	f.after(0)
	if s := f.after(time.Hour); !strings.Contains(s.Unsettled["app"], "app.yaml is open for writing") ||
		len(s.Files) > 0 {
		t.Errorf("open: %v", s)
	}
	f.must(w.Close())
	if s := f.after(0); len(s.Unsettled) > 0 || string(s.Files["app"].Data) != "half" {
		t.Errorf("closed: %v", s)
	}
	// What has another name as yet may be what replaces a manifest; an editor's swap file is open for hours.
	for name, busy := range map[string]bool{".app.yaml.AbC123": true, "x.filepart": true, ".app.yaml.swp": false} {
		w := open(name)
		if s := f.after(time.Hour); len(s.Busy) > 0 != busy || busy &&
			!strings.Contains(s.Busy[0], name+" is open for writing") {
			t.Errorf("%s: %q", name, s.Busy)
		}
		f.must(w.Close())
		if s := f.after(time.Hour); len(s.Busy) > 0 {
			t.Errorf("%s is closed: %q", name, s.Busy)
		}
	}
	// One who writes waits until the file is read, and no longer.
	p := filepath.Join(f.dir, "app.yaml")
	done := make(chan error)
	go func() {
		for range 200 {
			if err := os.WriteFile(p, []byte("again\n"), 0o644); err != nil {
				done <- err
				return
			}
		}
		close(done)
	}()
	for range 200 {
		f.after(0)
	}
	f.must(<-done)
}

func TestGitAtWork(t *testing.T) {
	f := newFolder(t)
	lock := f.put("repo/.git/index.lock", "")
	if s := f.after(0); len(s.Busy) != 1 || !strings.Contains(s.Busy[0], lock) {
		t.Errorf("%q", s.Busy)
	}
	f.must(os.Remove(lock))
	if s := f.after(0); len(s.Busy) > 0 {
		t.Errorf("%q", s.Busy)
	}
	// The folder is in a work tree.
	lock = f.put(".git/index.lock", "")
	sub := manifest.NewFolder(filepath.Dir(f.put("deploy/prod/a.yaml", "")))
	if s, err := sub.Read(f.now); err != nil || len(s.Busy) != 1 || !strings.Contains(s.Busy[0], lock) {
		t.Errorf("%q, %v", s.Busy, err)
	}
}

// TestDoubt: what a file lacks may have been lost on its way.
func TestDoubt(t *testing.T) {
	f := newFolder(t)
	for name, c := range map[string]struct {
		data   string
		ragged bool
		doubt  string
	}{
		"whole":   {"a: 1\n", false, ""},
		"cut":     {"a: 1", true, ""},
		"list":    {"a: [1]", true, ""},
		"json":    {`{"a": 1}`, false, ""},
		"halfway": {`{"a": 1}` + "\n---\n" + `{"a"`, true, ""},
		"empty":   {"", false, "it is empty"},
		"blank":   {" \n", false, "it is empty"},
		"comment": {"# nothing\n", false, ""},
	} {
		f.put(name+".yaml", c.data)
		f.after(0)
		s := f.after(manifest.Settle)
		if got := s.Files[name]; got.Ragged != c.ragged || got.Doubt != c.doubt {
			t.Errorf("%s: %v %q", name, got.Ragged, got.Doubt)
		}
	}
}

func TestLinks(t *testing.T) {
	f := newFolder(t)
	elsewhere := t.TempDir()
	target := filepath.Join(elsewhere, "app.yaml")
	f.must(os.Symlink(target, filepath.Join(f.dir, "app.yaml")))
	f.must(os.Symlink(elsewhere, filepath.Join(f.dir, "folder.yaml")))
	f.after(0)
	s := f.after(manifest.Settle)
	if err := s.Files["app"].Err; !errors.Is(err, manifest.ErrFault) || !strings.Contains(err.Error(), target) {
		t.Errorf("dangling: %v", err)
	}
	if err := s.Files["folder"].Err; err == nil || errors.Is(err, manifest.ErrFault) {
		t.Errorf("link to a folder: %v", err)
	}
	f.must(os.WriteFile(target, []byte("a\n"), 0o644))
	f.after(0)
	if s := f.after(manifest.Settle); string(s.Files["app"].Data) != "a\n" {
		t.Errorf("%v", s.Files["app"])
	}
	// The folder itself may be a link.
	link := filepath.Join(t.TempDir(), "manifests")
	f.must(os.Symlink(elsewhere, link))
	linked := manifest.NewFolder(link)
	if _, err := linked.Read(f.now); err != nil {
		t.Fatal(err)
	}
	if s, err := linked.Read(f.now.Add(manifest.Settle)); err != nil ||
		s.Files["app"].Origin != filepath.Join(link, "app.yaml") {
		t.Errorf("%v, %v", s, err)
	}
	f.must(os.Rename(elsewhere, elsewhere+".away"))
	if _, err := linked.Read(f.now); err == nil {
		t.Error("a link into nothing is an empty folder")
	}
}

// TestLinkToAFolder in the place of the folder hides what was in it, and takes nothing away.
func TestLinkToAFolder(t *testing.T) {
	f := newFolder(t)
	elsewhere := t.TempDir()
	for _, c := range []struct{ name, target string }{
		{"team", elsewhere}, {"team.yaml", elsewhere}, {"gone", filepath.Join(elsewhere, "gone")}, {"root", "/"},
		{"sub/self", ".."},
	} {
		f.must(os.MkdirAll(filepath.Dir(filepath.Join(f.dir, c.name)), 0o755))
		f.must(os.Symlink(c.target, filepath.Join(f.dir, c.name)))
	}
	s := f.after(0)
	for name, want := range map[string]bool{
		"team/a": true, "team/x/y": true, "team.yaml/a": true, "gone/a": true, "root/a": true, "sub/self/a": true,
		"team": false, "teams/a": false, "sub/a": false,
	} {
		if why := s.Behind(name); (why != "") != want || want && !strings.Contains(why, "is a link to") {
			t.Errorf("%s: %q", name, why)
		}
	}
	for _, link := range []string{"team", "team.yaml", "root", "sub/self"} {
		if why := s.Overlooked[filepath.Join(f.dir, link)]; !strings.Contains(why,
			"links to folders are not followed") {
			t.Errorf("%s: %q", link, why)
		}
	}
	if len(s.Overlooked) != 4 {
		t.Errorf("%v", s.Overlooked)
	}
}

// TestOverlooked: what people take for a manifest is not passed over without a word.
func TestOverlooked(t *testing.T) {
	f := newFolder(t)
	const object = "# mine\n---\napiVersion: v1\nkind: ConfigMap\n"
	for name, c := range map[string]struct{ text, says string }{
		"a.YAML":          {object, "lower case, .yaml"},
		"b.Json":          {"{}", "lower case, .json"},
		"c.yml.gz":        {"\x1f\x8b", "unpacked"},
		"d.txt":           {object, "looks like a manifest"},
		"sub/e":           {"kind: Pod\r\napiVersion: v1\r\n", "looks like a manifest"},
		"f.yaml.txt":      {"{\n \"kind\": \"Pod\", \"apiVersion\": \"v1\"}", "looks like a manifest"},
		"g.yml~":          {object, ""},
		".h.YAML":         {object, ""},
		"i.yaml.bak":      {object, ""},
		"j.yaml.disabled": {object, ""},
		"k.skip":          {"", ""},
		"README.md":       {"# Title\napiVersion: v1\n", ""},
		"l.sh":            {"#!/bin/sh\nkubectl apply\n", ""},
		"m.yaml":          {object, ""},
		"n":               {"", ""},
	} {
		p := f.put(name, c.text)
		if got := f.after(0).Overlooked[p]; (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q", name, got)
		}
	}
	f.must(os.Symlink("d.txt", filepath.Join(f.dir, "o.YML")))
	if got := f.after(0).Overlooked[filepath.Join(f.dir, "o.YML")]; !strings.Contains(got, "lower case, .yml") {
		t.Errorf("a link: %q", got)
	}
}

// TestUnreadableFolder: what is in it is not known, and so nothing is that may have moved there.
func TestUnreadableFolder(t *testing.T) {
	f := newFolder(t)
	f.put("a.yaml", "a\n")
	f.must(os.Remove(f.dir + "/a.yaml"))
	f.must(os.Remove(f.dir))
	if _, err := f.Read(f.now); err == nil {
		t.Error("a folder that is not there is an empty one")
	}
}

func TestMentions(t *testing.T) {
	text := []byte("kind: Namespace\nmetadata: {name: shop-front}\n<<<<<<< HEAD\nname: shop\n")
	for _, c := range [][]string{{"Namespace", "shop"}, {"Namespace", "shop-front"}} {
		if !manifest.Mentions(text, c...) {
			t.Error(c)
		}
	}
	for _, c := range [][]string{{"Namespace", "front"}, {"Names", "shop"}, {"Service", "shop"}, {"Namespace", "sho"}} {
		if manifest.Mentions(text, c...) {
			t.Error(c)
		}
	}
	if manifest.Mentions(nil) || slices.Contains([]bool{manifest.Mentions(nil, "a")}, true) {
		t.Error("no text mentions nothing")
	}
}
