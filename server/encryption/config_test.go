package encryption

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEnsureKeepsItsKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "encryption.yaml")
	if err := Ensure(file, ""); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(file, ""); err != nil {
		t.Fatal(err)
	}
	now, _ := os.ReadFile(file)
	if fi, _ := os.Stat(file); !bytes.Equal(was, now) || fi.Mode().Perm() != 0o600 {
		t.Error("the key or its protection is lost")
	}
	c, hash, err := load(file)
	if err != nil || c.phase() != PhaseNone || c.keys[0].String() != "secretbox key1" || !c.identity ||
		!strings.HasPrefix(hash, "sha256:") {
		t.Errorf("%v, %v", c, err)
	}
	if s := fmt.Sprintf("%v %+v %s", c.keys[0], c.keys[0], c.keys[0]); strings.Contains(s, c.keys[0].secret) {
		t.Errorf("printing a key tells it: %s", s)
	}
}

// TestCipherOfTheSettings: it is that of a new cluster's key, and later differs until a rotation.
func TestCipherOfTheSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e.yaml")
	for _, setting := range []string{"aescbc", "", "aescbc"} { // later ones change nothing
		if err := Ensure(file, setting); err != nil {
			t.Fatal(err)
		}
		if key, other := Differs(file, setting); other {
			t.Error(key)
		}
	}
	if key, other := Differs(file, "secretbox"); !other || key.String() != "aescbc key1" {
		t.Error(key, other)
	}
}

// first is a file with a key, as a server makes it at its first start.
func first(t *testing.T) (file string, c *config) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "e.yaml")
	if err := Ensure(file, ""); err != nil {
		t.Fatal(err)
	}
	c, _, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, c
}

func TestStepsOfARotation(t *testing.T) {
	for _, cipher := range Ciphers {
		file, c := first(t)
		// Each step is read back, as a process that goes on would.
		step := func(f func(), phase string, want ...string) {
			t.Helper()
			f()
			if err := c.write(file); err != nil {
				t.Fatal(err)
			}
			var err error
			if c, _, err = load(file); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, k := range c.keys {
				got = append(got, k.String())
			}
			if c.phase() != phase || strings.Join(got, ", ") != strings.Join(want, ", ") || !c.identity {
				t.Errorf("%s: %v", c.phase(), got)
			}
		}
		next := cipher + " key2"
		step(func() { _ = c.announce(cipher) }, PhaseAnnounced, "secretbox key1", next)
		step(func() { c.promote() }, PhaseRewriting, next, "secretbox key1")
		step(func() { c.retire() }, PhaseNone, next)
		step(func() { _ = c.announce("aescbc") }, PhaseAnnounced, next, "aescbc key3")
	}
}

func TestForeignConfigsAreRefusedWithoutQuotingThem(t *testing.T) {
	const secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
	head := "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n"
	one := "- resources: [secrets]\n  providers:\n"
	for name, text := range map[string]string{
		"rubbish": secret + ": [",
		"KMS":     head + one + "  - kms: {apiVersion: v2, name: x, endpoint: 'unix:///x'}\n",
		"identity first": head + one + "  - identity: {}\n  - secretbox: {keys: [{name: key1, secret: " + secret +
			"}]}\n",
		"two lists": head + one + "  - secretbox: {keys: [{name: a, secret: " + secret + "}]}\n" + one +
			"  - identity: {}\n",
		"no key": head + one + "  - identity: {}\n",
		"an unknown field": head + one + "  - secretbox: {keys: [{name: key1, secret: " + secret + ", more: " + secret +
			"}]}\n",
		"a key as number": head + one + "  - secretbox: {keys: [{name: key1, secret: [" + secret + "]}]}\n",
	} {
		_, err := parse([]byte(text))
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhichKeyAValueWasWrittenWith(t *testing.T) {
	for value, want := range map[string]string{
		"k8s:enc:secretbox:v1:key1:xxxx": "secretbox key1", "k8s:enc:aescbc:v1:key12:": "aescbc key12",
		"k8s\x00\n\x0c\n\x02v1": Unencrypted, "": Unencrypted, "k8s:enc:kms:v2:name:xx": Unknown, "k8s:enc:": Unknown,
	} {
		if got := keyOf([]byte(value)); got != want {
			t.Errorf("%q: %s", value, got)
		}
	}
	c := Counts{"secrets": {"secretbox key2": 5, "secretbox key1": 2}, "configmaps": {Unencrypted: 1}}
	if n := c.others(Key{"key2", "secretbox"}); n != 3 {
		t.Errorf("%d others", n)
	}
}

func TestFindsTheHashInMetrics(t *testing.T) {
	text := "# HELP x\n" + metric + `apiserver_id_hash="sha256:a",hash="sha256:b"} 1` + "\nother 1\n"
	for hash, want := range map[string]bool{"sha256:b": true, "sha256:a": false, "sha256:": false} {
		if got, err := findHash(strings.NewReader(text), hash); err != nil || got != want {
			t.Errorf("%s: %v, %v", hash, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - secretbox: {keys: [{name: key1, secret: eA==}]}\n  - identity: {}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parse(raw)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		d, err := parse(again)
		if err != nil || len(d.keys) != len(c.keys) || d.keys[0] != c.keys[0] || d.identity != c.identity {
			t.Errorf("%s\nbecomes\n%s\n%v", raw, again, err)
		}
	})
}

func FuzzKeyOf(f *testing.F) {
	f.Add([]byte("k8s:enc:secretbox:v1:key1:xxxx"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s := keyOf(raw); s == "" || len(s) > 300 {
			t.Errorf("%q", s)
		}
	})
}
