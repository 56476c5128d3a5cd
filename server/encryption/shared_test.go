package encryption

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

// TestOrderOfARotation: a server takes over what is further than its own, and nothing else.
func TestOrderOfARotation(t *testing.T) {
	file, c := first(t)
	var steps [][]byte
	note := func() {
		raw, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, raw)
	}
	note()
	for range 2 {
		for _, f := range []func(){func() { _ = c.announce("aesgcm") }, c.promote, c.retire} {
			f()
			note()
		}
	}
	for i, a := range steps {
		for j, b := range steps {
			order, err := Compare(a, b)
			if err != nil || (order < 0) != (i < j) || (order == 0) != (i == j) {
				t.Errorf("step %d and step %d: %d, %v", i, j, order, err)
			}
			if err := os.WriteFile(file, a, 0o600); err != nil {
				t.Fatal(err)
			}
			was, err := Adopt(file, b)
			now, _ := os.ReadFile(file)
			if want := steps[max(i, j)]; err != nil || was != order || !bytes.Equal(now, want) {
				t.Errorf("step %d is told of step %d: %d, %v", i, j, was, err)
			}
		}
	}
	c, _ = parse(steps[0])
	if err := c.announce("aesgcm"); err != nil {
		t.Fatal(err)
	}
	other, _ := c.encode()
	if _, err := Compare(other, steps[1]); !errors.Is(err, ErrElsewhere) {
		t.Errorf("two second keys: %v", err)
	}
	foreign := []byte("kind: EncryptionConfiguration\n")
	if err := os.WriteFile(file, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	if was, err := Adopt(file, other); was < 0 || err == nil {
		t.Errorf("a file that was made by hand: %d, %v", was, err)
	}
	if now, _ := os.ReadFile(file); !bytes.Equal(now, foreign) {
		t.Error("a file that was made by hand is lost")
	}
}

func TestOnlyWhoHasTheSecretOpens(t *testing.T) {
	raw := []byte("a key")
	sealed, err := sealConfig([]byte("secret"), raw)
	if err != nil || bytes.Contains(sealed, raw) {
		t.Fatalf("%q, %v", sealed, err)
	}
	if got, err := openConfig([]byte("secret"), sealed); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%q, %v", got, err)
	}
	again, err := sealConfig([]byte("secret"), raw)
	if err != nil || bytes.Equal(again, sealed) {
		t.Errorf("twice the same: %v", err)
	}
	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	for what, f := range map[string]func() ([]byte, error){
		"another secret": func() ([]byte, error) { return openConfig([]byte("other"), sealed) },
		"changed":        func() ([]byte, error) { return openConfig([]byte("secret"), changed) },
		"cut":            func() ([]byte, error) { return openConfig([]byte("secret"), sealed[:10]) },
		"nothing":        func() ([]byte, error) { return openConfig([]byte("secret"), nil) },
	} {
		if got, err := f(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := sealConfig(nil, raw); err == nil {
		t.Error("sealed without a secret")
	}
}
