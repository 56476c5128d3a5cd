package addons_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"github.com/umiak-io/umiak/server/addons"
)

// These tests take files away in ways that are no proof that a person wanted their objects gone. That an object was not
// deleted and made anew shows in its UID.

// uid is the object's identity, "" when it is not there.
func (f *fixture) uid(name string) types.UID {
	f.t.Helper()
	if c := f.configMap(name); c != nil {
		return c.UID
	}
	return ""
}

// same says that objects are the ones that they were.
func (f *fixture) same(uids map[string]types.UID) {
	f.t.Helper()
	for name, uid := range uids {
		if now := f.uid(name); now != uid {
			f.t.Errorf("ConfigMap %s was %q and is %q", name, uid, now)
		}
	}
}

func (f *fixture) uids(names ...string) map[string]types.UID {
	f.t.Helper()
	out := map[string]types.UID{}
	for _, n := range names {
		if out[n] = f.uid(n); out[n] == "" {
			f.t.Fatalf("ConfigMap %s is not there", n)
		}
	}
	return out
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// heldBecause waits until the manifest's objects are kept for the reason.
func (f *fixture) heldBecause(name, reason string) {
	f.t.Helper()
	f.eventually(name+" being held because "+reason, func() bool {
		s, text := f.state(name)
		return s == addons.Held && strings.Contains(text, reason)
	})
	rows := fmt.Sprint(f.Section(context.Background()).Rows)
	if !strings.Contains(rows, reason) {
		f.t.Errorf("status does not say %q:\n%s", reason, rows)
	}
}

// TestRenamed gives a file another name in the ways of people and tools.
func TestRenamed(t *testing.T) {
	f := newFixture(t)
	f.start()
	in := func(name string) string { return filepath.Join(f.dir, name) }
	text := cm("r1", "1") + cm("r2", "1")
	f.write("n0.yaml", text)
	f.is("n0", addons.Applied)
	have := f.uids("r1", "r2")
	pause := func() { time.Sleep(300 * time.Millisecond) } // longer than an event takes to be seen
	last := "n0"
	for i, rename := range []func(from, to string){
		func(from, to string) { f.write(to, text); f.remove(from) },          // cp, rm
		func(from, to string) { f.must(os.Rename(in(from), in(to))) },        // mv
		func(from, to string) { f.remove(from); f.write(to, text) },          // git checkout
		func(from, to string) { f.remove(from); pause(); f.write(to, text) }, // a large one, or rsync --delete
		func(from, to string) { f.write(to, text); pause(); pause(); f.remove(from) },
		func(from, to string) { // into another folder, and with more in it
			f.must(os.Mkdir(in("sub"), 0o755))
			f.write("sub/"+to, text+cm("r3", "1"))
			f.remove(from)
			pause()
			f.must(os.Rename(in("sub/"+to), in(to)))
		},
		func(from, to string) { // each object into a file of its own, later than the first is gone
			f.write(to, cm("r1", "1"))
			pause()
			f.remove(from)
			pause()
			f.write("x"+to, cm("r2", "1"))
		},
	} {
		to := fmt.Sprintf("n%d", i+1)
		rename(last+".yaml", to+".yaml")
		f.is(to, addons.Applied)
		f.eventually("the end of "+last, func() bool { s, _ := f.state(last); return s == "" })
		f.same(have)
		last = to
	}
	f.eventually("r3, which is in no file any more, being pruned", func() bool { return f.configMap("r3") == nil })
	f.remove(last + ".yaml")
	f.remove("x" + last + ".yaml")
	f.eventually("the end", func() bool {
		return f.configMap("r1") == nil && f.configMap("r2") == nil &&
			len(f.Status()) == 0
	})
}

// TestStalledCopy: what has not come yet is not gone, and neither is what a file had that is being copied to another
// name.
func TestStalledCopy(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("app.yaml", cm("c1", "1")+cm("c2", "1"))
	f.write("shop.yaml", cm("c3", "1"))
	f.is("app", addons.Applied)
	f.is("shop", addons.Applied)
	have := f.uids("c1", "c2", "c3")
	app, err := os.OpenFile(filepath.Join(f.dir, "app.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	f.must(err)
	_, err = app.WriteString(cm("c1", "2"))
	f.must(err)
	store, err := os.Create(filepath.Join(f.dir, ".store.yaml.Ab12Cd")) // rsync's name for it until it is complete
	f.must(err)
	f.remove("shop.yaml")
	f.heldBecause("shop", "open for writing")
	f.same(have)
	_, err = app.WriteString(cm("c2", "2"))
	f.must(errors.Join(err, app.Close()))
	f.eventually("the complete file's being applied", func() bool { return f.configMap("c2").Data["key"] == "2" })
	f.heldBecause("shop", ".store.yaml.Ab12Cd is open for writing")
	_, err = store.WriteString(cm("c3", "2"))
	f.must(errors.Join(err, store.Close(), os.Rename(store.Name(), filepath.Join(f.dir, "store.yaml"))))
	f.is("store", addons.Applied)
	f.eventually("the end of shop", func() bool { s, _ := f.state("shop"); return s == "" })
	f.same(have)
	f.remove("store.yaml")
	f.eventually("c3 being pruned", func() bool { return f.configMap("c3") == nil })
}

// TestDoubtfulFile: a file that lacks objects in a way in which people do not write files.
func TestDoubtfulFile(t *testing.T) {
	f := newFixture(t)
	f.start()
	whole := cm("d1", "1") + cm("d2", "1")
	f.write("app.yaml", whole)
	f.is("app", addons.Applied)
	have := f.uids("d1", "d2")
	cut := strings.TrimSuffix(cm("d1", "2"), "\n---\n")
	for _, c := range []struct{ text, why string }{{"", "it is empty"}, {cut, "middle of a line"}, {"kind: [", ""}} {
		f.write("app.yaml", c.text)
		if c.why == "" {
			f.is("app", addons.Invalid)
		} else {
			f.heldBecause("app", c.why)
		}
		f.same(have)
		f.write("app.yaml", whole)
		f.is("app", addons.Applied)
	}
	// It stays so over a restart, and one whose every version ends so is no longer in doubt.
	f.write("app.yaml", cut)
	f.heldBecause("app", "middle of a line")
	f.stop()
	f.start()
	f.heldBecause("app", "middle of a line")
	f.same(have)
	f.write("app.yaml", whole+strings.TrimSuffix(cm("d3", "1"), "\n---\n"))
	f.is("app", addons.Applied)
	f.write("app.yaml", cut)
	f.eventually("its being pruned", func() bool { return f.configMap("d2") == nil && f.configMap("d3") == nil })
}

// TestLinkIntoNothing: the disk with the file is not there.
func TestLinkIntoNothing(t *testing.T) {
	f := newFixture(t)
	disk := t.TempDir()
	target := filepath.Join(disk, "app.yaml")
	f.must(os.WriteFile(target, []byte(cm("l1", "1")), 0o644))
	f.must(os.Symlink(target, filepath.Join(f.dir, "app.yaml")))
	f.write("other.yaml", cm("l2", "1"))
	f.start()
	f.is("app", addons.Applied)
	f.is("other", addons.Applied)
	have := f.uids("l1")
	f.must(os.Rename(disk, disk+".away"))
	f.write("other.yaml", cm("l2", "2")) // any event
	f.heldBecause("app", "is its disk mounted")
	f.stop()
	f.start()
	f.heldBecause("app", "is its disk mounted")
	f.same(have)
	f.remove("other.yaml") // is its own file
	f.eventually("the other's being pruned", func() bool { return f.configMap("l2") == nil })
	f.must(os.Rename(disk+".away", disk))
	f.is("app", addons.Applied)
	f.same(have)
	f.must(os.Rename(disk, disk+".away"))
	f.remove("app.yaml") // the link: that is a person's doing
	f.eventually("its being pruned", func() bool { return f.configMap("l1") == nil })
	f.must(os.Rename(disk+".away", disk))
}

// TestNewFileThatCannotBeRead may be the new name of one that is gone.
func TestNewFileThatCannotBeRead(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("a.yaml", cm("u1", "1"))
	f.write("b.yaml", cm("u2", "1"))
	f.is("a", addons.Applied)
	f.is("b", addons.Applied)
	have := f.uids("u1", "u2")
	f.must(os.Symlink("/nowhere/x.yaml", filepath.Join(f.dir, "x.yaml")))
	f.remove("a.yaml")
	f.heldBecause("a", "x.yaml cannot be read")
	f.same(have)
	f.remove("x.yaml")
	f.eventually("a's being pruned", func() bool { return f.configMap("u1") == nil })
	// Of one with a mistake the text is known.
	f.write("y.yaml", "<<<<<<< HEAD\n"+cm("u2", "1"))
	f.is("y", addons.Invalid)
	f.write("c.yaml", cm("u3", "1"))
	f.is("c", addons.Applied)
	f.remove("b.yaml")
	f.remove("c.yaml")
	f.heldBecause("b", "y.yaml, which cannot be used as it is")
	f.eventually("c's being pruned", func() bool { return f.configMap("u3") == nil })
	f.write("y.yaml", cm("u2", "1"))
	f.is("y", addons.Applied)
	f.eventually("the end of b", func() bool { s, _ := f.state("b"); return s == "" })
	f.same(map[string]types.UID{"u2": have["u2"]})
}

// TestNamespaceOfOthers: with it, what other manifests have in it would go.
func TestNamespaceOfOthers(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: quay}\n")
	f.write("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: data, namespace: quay}\n")
	f.is("a", addons.Applied)
	f.is("b", addons.Applied)
	f.remove("a.yaml")
	f.heldBecause("a", "manifest b has objects in it")
	f.remove("b.yaml")
	f.eventually("the end", func() bool {
		ns, err := f.client.CoreV1().Namespaces().Get(t.Context(), "quay", meta.GetOptions{})
		return apierrors.IsNotFound(err) || err == nil && ns.DeletionTimestamp != nil
	})
}

// TestUnmounted takes away the disk that the folder, or a folder in it, is on.
func TestUnmounted(t *testing.T) {
	for name, at := range map[string]string{"Folder": "", "Sub": "sub"} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.name = "unmounted" // as a label
			disk, at := t.TempDir(), filepath.Join(f.dir, at)
			f.must(os.MkdirAll(at, 0o755))
			mount := func() { t.Helper(); f.must(unix.Mount(disk, at, "", unix.MS_BIND, "")) }
			unmount := func() { t.Helper(); f.must(unix.Unmount(at, unix.MNT_DETACH)) }
			mount()
			t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
			file := filepath.Join(at, "m.yaml")
			f.must(os.WriteFile(file, []byte(cm("m1", "1")), 0o644))
			id, err := filepath.Rel(f.dir, strings.TrimSuffix(file, ".yaml"))
			f.must(err)
			f.start()
			f.is(id, addons.Applied)
			have := f.uids("m1")
			f.stop()
			unmount()
			f.start() // as after a boot without the disk
			f.heldBecause(id, "is not mounted")
			f.same(have)
			mount()
			f.is(id, addons.Applied)
			f.same(have)
			f.stop()
			unmount()
			f.start()
			f.heldBecause(id, "is not mounted")
			f.stop()
			mount()
			f.must(os.Remove(file)) // while we were away, and on the disk
			f.write(".keep", "")
			f.start()
			f.eventually("its being pruned", func() bool { return f.configMap("m1") == nil && len(f.Status()) == 0 })
		})
	}
}

// TestGivenUp: who deletes the record of what is held takes over what it lists.
func TestGivenUp(t *testing.T) {
	f := newFixture(t)
	f.must(unix.Mount("tmpfs", f.dir, "tmpfs", 0, ""))
	f.write("g.yaml", cm("g1", "1"))
	f.start()
	f.is("g", addons.Applied)
	have := f.uids("g1")
	f.must(unix.Unmount(f.dir, 0))
	f.heldBecause("g", "umiak-manifest-g")
	f.must(f.client.CoreV1().ConfigMaps("kube-system").Delete(t.Context(), "umiak-manifest-g", meta.DeleteOptions{}))
	f.eventually("its being forgotten", func() bool { return len(f.Status()) == 0 })
	f.same(have)
	f.must(f.client.CoreV1().ConfigMaps("default").Delete(t.Context(), "g1", meta.DeleteOptions{}))
}

// TestFolderLost: a folder that is empty, or not there, at a start may have lost its files; one that was seen with
// files has been emptied by a person.
func TestFolderLost(t *testing.T) {
	f := newFixture(t)
	f.write("l.yaml", cm("lost", "1"))
	f.start()
	f.is("l", addons.Applied)
	have := f.uids("lost")
	for what, lose := range map[string]func() error{
		"it is gone":  func() error { return os.RemoveAll(f.dir) },
		"it is empty": func() error { return os.Remove(filepath.Join(f.dir, "l.yaml")) },
		"its folders are empty": func() error {
			return errors.Join(os.Remove(filepath.Join(f.dir, "l.yaml")), os.Mkdir(filepath.Join(f.dir, "sub"), 0o755))
		},
	} {
		t.Log(what)
		f.stop()
		f.must(lose())
		f.start()
		f.heldBecause("l", "put them back, or any file")
		f.same(have)
		f.write("l.yaml", cm("lost", "1"))
		f.is("l", addons.Applied)
		f.same(have)
	}
	f.stop()
	f.must(os.RemoveAll(f.dir))
	f.start()
	f.heldBecause("l", ".keep")
	f.write(".keep", "") // the operator's word
	f.eventually("its being pruned", func() bool { return f.configMap("lost") == nil && len(f.Status()) == 0 })
	f.remove(".keep")
	f.write("l.yaml", cm("lost", "1"))
	f.is("l", addons.Applied)
	f.remove("l.yaml") // the last file, while we look
	f.eventually("its being pruned", func() bool { return f.configMap("lost") == nil && len(f.Status()) == 0 })
}

// TestFolderMovedAway keeps everything until there is a folder again that has no such file.
func TestFolderMovedAway(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("w.yaml", cm("w1", "1"))
	f.write("sub/v.yaml", cm("w2", "1"))
	f.is("w", addons.Applied)
	f.is("sub/v", addons.Applied)
	have := f.uids("w1", "w2")
	f.must(os.Rename(f.dir, f.dir+".away"))
	f.eventually("its being said", func() bool {
		return strings.Contains(fmt.Sprint(f.Section(t.Context()).Rows),
			"unreadable")
	})
	time.Sleep(2500 * time.Millisecond)
	f.same(have)
	f.must(os.Rename(f.dir+".away", f.dir))
	f.write("w.yaml", cm("w1", "2"))
	f.eventually("its being applied", func() bool { return f.configMap("w1").Data["key"] == "2" })
	f.same(have)
	f.must(os.RemoveAll(filepath.Join(f.dir, "sub")))
	f.eventually("w2 being pruned", func() bool { return f.configMap("w2") == nil })
}

// TestFolderReplacedByLink: what is behind a link to a folder is not looked at, so it is not known to be gone.
func TestFolderReplacedByLink(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("team/a.yaml", cm("k1", "1"))
	f.write("B.YAML", cm("k2", "1"))
	f.is("team/a", addons.Applied)
	have := f.uids("k1")
	team, away := filepath.Join(f.dir, "team"), filepath.Join(t.TempDir(), "team")
	f.must(os.Rename(team, away))
	f.must(os.Symlink(away, team))
	f.heldBecause("team/a", "links to folders are not followed")
	f.stop()
	f.start()
	f.heldBecause("team/a", "links to folders are not followed")
	f.same(have)
	rows := fmt.Sprint(f.Section(t.Context()).Rows)
	for _, say := range []string{team + " overlooked", filepath.Join(f.dir, "B.YAML") + " overlooked"} {
		if !strings.Contains(rows, say) {
			t.Errorf("status does not say %q: %s", say, rows)
		}
	}
	f.must(os.Remove(team))
	f.must(os.Rename(away, team))
	f.is("team/a", addons.Applied)
	f.same(have)
	f.must(os.Rename(team, away))
	f.must(os.Symlink(away, team))
	f.heldBecause("team/a", "remove the link")
	f.must(os.Remove(team)) // a person's word
	f.eventually("its being pruned", func() bool { return f.configMap("k1") == nil && len(f.Status()) == 0 })
}

// server is a second one, with a folder of its own.
func (f *fixture) server(name string) *fixture {
	f.t.Helper()
	other := fixtureOn(f.t, f.cluster)
	other.name, other.left = name, f.left
	return other
}

// TestTwoServers have the same file, which is taken away from one after the other.
func TestTwoServers(t *testing.T) {
	a := newFixture(t)
	gone := map[string]bool{}
	a.left = func(_ context.Context, server string, _ bool) (bool, error) { return gone[server], nil }
	a.name = "a"
	b := a.server("b")
	c := a.server("c")
	both := cm("s1", "1") + cm("s2", "1")
	for _, f := range []*fixture{a, b} {
		f.write("app.yaml", both)
		f.start()
	}
	a.is("app", addons.Applied)
	b.is("app", addons.Applied)
	have := a.uids("s1", "s2")
	a.eventually("both being known", func() bool {
		return strings.Contains(fmt.Sprint(a.Section(t.Context()).Rows),
			"file of server b")
	})

	// One object is taken out of one of the two files, then of the other.
	a.write("app.yaml", cm("s1", "1"))
	time.Sleep(3 * time.Second)
	a.same(have)
	b.write("app.yaml", cm("s1", "1"))
	a.eventually("s2 being pruned", func() bool { return a.configMap("s2") == nil })

	delete(have, "s2")
	a.remove("app.yaml")
	a.is("app", addons.Foreign)
	a.stop()
	a.start()
	a.is("app", addons.Foreign)
	a.same(have)
	b.remove("app.yaml")
	a.eventually("s1 being pruned", func() bool { return a.configMap("s1") == nil })
	a.eventually("the end at a, too", func() bool { return len(a.Status()) == 0 && len(b.Status()) == 0 })

	// A server has left the cluster, with its file.
	c.write("app.yaml", cm("s1", "1"))
	c.start()
	c.is("app", addons.Applied)
	c.stop()
	gone["c"] = true
	have = a.uids("s1")
	a.eventually("its being named", func() bool {
		return strings.Contains(fmt.Sprint(a.Section(t.Context()).Rows), "server c, which has left")
	})
	a.same(have)
	a.write("app.yaml", cm("s1", "1"))
	a.is("app", addons.Applied)
	a.same(have)
	a.remove("app.yaml")
	a.eventually("s1 being pruned", func() bool { return a.configMap("s1") == nil && len(a.Status()) == 0 })
	c.remove("app.yaml")
}

// TestRecordOfBefore is one that a version wrote which knew one server a file, and no place.
func TestRecordOfBefore(t *testing.T) {
	f := newFixture(t)
	f.write("o.yaml", cm("o1", "1")+cm("o2", "1"))
	f.start()
	f.is("o", addons.Applied)
	have := f.uids("o1", "o2")
	f.stop()
	maps := f.client.CoreV1().ConfigMaps("kube-system")
	rec, err := maps.Get(t.Context(), "umiak-manifest-o", meta.GetOptions{})
	f.must(err)
	items := `{"v":"v1","k":"ConfigMap","ns":"default","n":"o1"},{"v":"v1","k":"ConfigMap","ns":"default","n":"o2"}`
	rec.Data["record"] = fmt.Sprintf(`{"name":"o","origin":%q,"server":%q,"state":"applied","items":[%s]}`,
		filepath.Join(f.dir, "o.yaml"), f.name, items)
	_, err = maps.Update(t.Context(), rec, meta.UpdateOptions{})
	f.must(err)
	f.write("o.yaml", cm("o1", "1"))
	f.start()
	f.eventually("what is no longer in it being pruned", func() bool { return f.configMap("o2") == nil })
	delete(have, "o2")
	f.same(have)
}

// TestKindThatComesLater wakes what waits for it, and nothing is watched while nothing waits.
func TestKindThatComesLater(t *testing.T) {
	f := newFixture(t)
	client, err := metadata.NewForConfig(f.cluster)
	f.must(err)
	woken := make(chan string, 100)
	k := addons.NewKinds(client, func(id string) { woken <- id })
	defer k.Close()
	if k.Watching() {
		t.Error("it watches for nobody")
	}
	k.Await("ship", "example.org", "late.example.org")
	f.write("crd.yaml", strings.ReplaceAll(fmt.Sprintf(crd, "keel", "Keel"), "example.org", "late.example.org"))
	f.start()
	f.is("crd", addons.Applied)
	select {
	case <-woken:
	case <-time.After(30 * time.Second):
		t.Error("not woken")
	}
	k.Await("ship")
	if k.Watching() {
		t.Error("it watches on")
	}
}
