package seal

import (
	"errors"
	"testing"
)

func TestSeal(t *testing.T) {
	key := func(secret, purpose string) []byte {
		k, err := Key([]byte(secret), purpose)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sealed, err := Seal(key("s", "p"), []byte("word"), []byte("beside"))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := Open(key("s", "p"), sealed, []byte("beside")); err != nil || string(raw) != "word" {
		t.Errorf("%q, %v", raw, err)
	}
	for what, k := range map[string][]byte{"another secret": key("t", "p"), "another purpose": key("s", "q")} {
		if _, err := Open(k, sealed, []byte("beside")); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Open(key("s", "p"), sealed, []byte("elsewhere")); !errors.Is(err, ErrOther) {
		t.Errorf("beside other data: %v", err)
	}
	if _, err := Open(key("s", "p"), nil, nil); !errors.Is(err, ErrOther) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := Key(nil, "p"); err == nil {
		t.Error("a key of no secret")
	}
}
