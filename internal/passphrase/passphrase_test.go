package passphrase

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
)

// TestFactors covers how the memory of machines decides what they write and read.
func TestFactors(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		memory      uint64 // in MiB, as the kernel reports it
		write, read Factor
	}{
		{0, 15, 15}, {128, 15, 16}, {430, 15, 17}, {920, 16, 18}, {1850, 17, 18}, {64 << 10, 17, 18},
	} {
		if w, r := within(c.memory*mib/12, usual), within(c.memory*mib/2, most); w != c.write || r != c.read {
			t.Errorf("%d MiB: writes %d and reads up to %d, want %d and %d", c.memory, w, r, c.write, c.read)
		}
	}
	if Factor(17).memory() != 128*mib {
		t.Errorf("17 takes %d bytes", Factor(17).memory())
	}
	if f := Suitable(); f < Least || f > usual || acceptable() < f {
		t.Errorf("this machine writes %d and reads up to %d", f, acceptable())
	}
}

func sealed(t *testing.T, secret string, f Factor) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := Encrypt(&out, secret, f)
	if err == nil {
		_, err = io.WriteString(w, "content")
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRoundTrip covers files of earlier releases, of this one on large machines, and of another tool.
func TestRoundTrip(t *testing.T) {
	for _, f := range []Factor{Least, 16, 17} {
		raw := sealed(t, "a passphrase", f)
		r, err := Decrypt(bytes.NewReader(raw), "a passphrase")
		if err != nil {
			t.Fatalf("factor %d: %v", f, err)
		}
		if text, err := io.ReadAll(r); err != nil || string(text) != "content" {
			t.Errorf("factor %d: %q, %v", f, text, err)
		}
	}
	if _, err := Decrypt(bytes.NewReader(sealed(t, "a passphrase", Least)), "another"); !errors.Is(err, ErrWrong) {
		t.Errorf("another passphrase: %v", err)
	}
	if _, err := Encrypt(io.Discard, "", Least); err == nil {
		t.Error("an empty passphrase is used")
	}
}

// TestAHostileFileTakesNoMemory covers factors in files that a machine has no memory for, or that are none.
func TestAHostileFileTakesNoMemory(t *testing.T) {
	raw := sealed(t, "a passphrase", Least)
	claims := func(f string) []byte {
		before, after, ok := strings.Cut(string(raw), fmt.Sprintf(" %d\n", Least))
		if !ok {
			t.Fatalf("no factor in %.100q", raw)
		}
		return []byte(before + " " + f + "\n" + after)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for f, want := range map[string]error{"18": ErrMemory, "30": ErrMemory, "62": ErrMemory,
		"99999999999999999999": nil, "-1": nil, "x": nil, "016": nil} {
		_, err := decrypt(bytes.NewReader(claims(f)), "a passphrase", 16)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("factor %s: %v", f, err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
		t.Errorf("refusing took %d MiB", took>>20)
	}
	// More than one way to the key is not scrypt's: age refuses it, however many derivations it would be.
	id, err := age.NewScryptIdentity("a passphrase")
	if err != nil {
		t.Fatal(err)
	}
	one := &age.Stanza{Type: "scrypt", Args: []string{"AAAAAAAAAAAAAAAAAAAAAA", "15"}, Body: make([]byte, 32)}
	if _, err := (&bounded{ScryptIdentity: id, limit: 16}).Unwrap([]*age.Stanza{one, one}); err == nil {
		t.Error("two stanzas are taken")
	}
}
