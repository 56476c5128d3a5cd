package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const bundled = `
apiVersion: v1
kind: Pod
metadata: {name: from-bundle, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", imagePullPolicy: Never}]
`

// TestBundle: what a node has is packed, carried to a machine that reaches nobody, installed there, and brought up to
// date by two more.
func TestBundle(t *testing.T) {
	maker := share(t)
	m := newReleases(t)
	for version, build := range map[string]string{"v1": "", "v2": "next"} {
		maker.must(m.maker.Make(m.dir, version, map[string]io.Reader{"umiak": program(t, build, "umiak"),
			"umiak-agent": strings.NewReader("#!/bin/sh\n")}))
	}
	air := newBox(t, "air")
	air.bare()
	air.must(os.RemoveAll(air.hostPath("/var/lib/umiak/agent")))
	stick := filepath.Join(maker.M.Dir, "tmp")
	in := func(name string) string { return filepath.Join(stick, "bundle-"+name) }
	umiak := func(args ...string) string {
		t.Helper()
		out, err := maker.M.Run(maker.within(2*patience), filepath.Join(maker.M.Bin(), "umiak"), args...)
		maker.must(err)
		return out
	}
	// carry makes a bundle and takes it to the other machine.
	carry := func(args ...string) string {
		t.Helper()
		file := filepath.Join(air.M.Dir, "tmp", "bundle.tar")
		umiak(append([]string{"bundle", "create", "--key", filepath.Join(m.dir, "v1", "install.sh"), "--out",
			in("out.tar")}, args...)...)
		t.Log(umiak("bundle", "verify", in("out.tar")))
		raw, err := os.ReadFile(in("out.tar"))
		if err == nil {
			err = os.WriteFile(file, raw, 0o600)
		}
		maker.must(err)
		return file
	}
	maker.must(os.WriteFile(in("pod.yaml"), []byte(bundled), 0o600))
	maker.must(os.WriteFile(in("server.yaml"), []byte("node-label: [from=bundle]\n"), 0o600))
	umiak("images", "export", "--file", in("app2.tar.gz"), "registry.test/app:2")

	bundle := carry("--release", filepath.Join(m.dir, "v1"), "--image", "registry.test/app:1", "--manifest",
		in("pod.yaml"), "--server-config", in("server.yaml"))
	clean := air.files()
	air.sub("Damaged", func(b *box) {
		raw, err := os.ReadFile(bundle)
		b.must(err)
		i := bytes.Index(raw, []byte("from-bundle"))
		raw[i] = 'F'
		b.must(os.WriteFile(bundle+".bad", raw, 0o600))
		out, err := b.M.Run(b.soon(), "/bin/sh", "-c", "mkdir /tmp/bad && tar -C /tmp/bad -xf "+bundle+
			".bad && sh /tmp/bad/umiak-bundle/install.sh 2>&1")
		if err == nil || !strings.Contains(out, "bundle-pod.yaml is damaged") {
			b.Errorf("%v: %s", err, out)
		}
		if diff := clean.Diff(b.files()); len(diff) > 0 {
			b.Errorf("left behind:\n%s", strings.Join(diff, "\n"))
		}
	})
	out, err := air.M.Run(air.within(3*patience), "/bin/sh", "-c", "mkdir /tmp/in && tar -C /tmp/in -xf "+bundle+
		" && sh /tmp/in/umiak-bundle/install.sh 2>&1")
	if err != nil {
		t.Fatalf("install: %v\n%s\n%s", err, out, air.systemLog())
	}
	t.Log(out)
	air.up()
	air.ns = "default"
	air.pod(named("from-bundle"), isReady)
	n, err := air.Kube.CoreV1().Nodes().Get(air.soon(), "air", metav1.GetOptions{})
	if err != nil || n.Labels["from"] != "bundle" {
		t.Errorf("settings: labels %v, %v", n.Labels, err)
	}
	have, pid, old := air.containers(), air.mainPID(), air.installed()

	air.sub("ImagesAlone", func(b *box) {
		b.upgrade("--from", carry("--no-programs", "--release", filepath.Join(m.dir, "v1"), "--images",
			in("app2.tar.gz")))
		b.apply(strings.NewReplacer("from-bundle", "second", "app:1", "app:2", ", namespace: default",
			"").Replace(bundled))
		b.pod(named("second"), isReady)
		if b.mainPID() != pid {
			b.Error("umiak was restarted for an image")
		}
		b.kubectl("delete", "pod", "second", "--force", "--grace-period=0")
		b.gonePod("second")
	})
	air.sub("AnotherBuild", func(b *box) {
		file := carry("--release", filepath.Join(m.dir, "v2"))
		raw, err := os.ReadFile(file)
		b.must(err)
		b.must(os.WriteFile(file+".half", raw[:len(raw)/2], 0o600))
		before := b.files()
		out, err := b.M.Run(b.soon(), "/usr/local/bin/umiak", "upgrade", "--from", file+".half")
		if err == nil || !strings.Contains(fmt.Sprint(err, out), "unexpected EOF") {
			b.Errorf("half a bundle: %v\n%s", err, out)
		}
		if diff := before.Diff(b.files()); len(diff) > 0 {
			b.Errorf("half a bundle left behind:\n%s", strings.Join(diff, "\n"))
		}
		b.upgrade("--from", file)
		b.up()
		if b.installed() == old {
			b.Error("the program is the old one")
		}
		b.untouched(have, "the update")
		var left []string
		b.must(b.M.Do(func() (err error) {
			for _, p := range []string{filepath.Join(b.M.Dir, "tmp", "umiak-*"), "/usr/local/bin/.umiak*",
				"/var/lib/umiak/agent/images/*.umiak-*", "/etc/umiak/*.umiak-*", "/etc/umiak/unfinished"} {
				more, err := filepath.Glob(p)
				b.must(err)
				left = append(left, more...)
			}
			return nil
		}))
		if len(left) > 0 {
			b.Errorf("left: %v", left)
		}
	})
}
