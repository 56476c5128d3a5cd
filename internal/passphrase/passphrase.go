package passphrase

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// Factor is the work factor of scrypt: the logarithm of its cost. One more doubles memory and time.
type Factor int

// On one core of an AMD EPYC a derivation takes 32 MiB and 0.10 s of CPU time with factor 15, 64 MiB and 0.20 s with
// 16, 128 MiB and 0.40 s with 17, 256 MiB and 0.80 s with 18.
const (
	// Least is for secrets that nobody can guess, and for machines with little memory. Earlier releases use it for all.
	Least Factor = 15
	// usual is what a machine with enough memory uses for a secret that a person may have chosen.
	usual Factor = 17
	// most bounds the time that a file can ask for, whatever memory the machine has.
	most Factor = 18
)

// Errors of Decrypt.
var (
	ErrWrong  = errors.New("wrong passphrase")
	ErrMemory = errors.New("it takes more memory than this machine may spend; open it on a larger machine")
)

// memory returns what one derivation takes, in bytes: scrypt's block size is 8.
func (f Factor) memory() uint64 { return 128 * 8 << f }

// Suitable returns the factor with which this machine encrypts: one that takes at most a twelfth of its memory. That
// is 17 from 2 GB on, 16 with 1 GB.
func Suitable() Factor { return within(total()/12, usual) }

// acceptable returns the largest factor that this machine decrypts with: one that takes at most half of its memory.
func acceptable() Factor { return within(total()/2, most) }

// within returns the largest factor up to a limit that takes no more than some bytes, at least Least.
func within(bytes uint64, limit Factor) Factor {
	f := limit
	for f > Least && f.memory() > bytes {
		f--
	}
	return f
}

// total returns the memory of the machine in bytes.
func total() uint64 {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0 // Least is for every machine
	}
	return uint64(i.Totalram) * uint64(i.Unit) //nolint:unconvert // 32 bits on some architectures
}

// Encrypt returns a writer that encrypts to w. Close ends the encryption; it does not close w.
func Encrypt(w io.Writer, secret string, f Factor) (io.WriteCloser, error) {
	r, err := age.NewScryptRecipient(secret)
	if err != nil {
		return nil, fmt.Errorf("use passphrase: %w", err)
	}
	r.SetWorkFactor(int(f))
	defer release(f)
	out, err := age.Encrypt(w, r)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out, nil
}

// Decrypt returns a reader of what Encrypt has encrypted, with any factor for which this machine has the memory.
func Decrypt(r io.Reader, secret string) (io.Reader, error) { return decrypt(r, secret, acceptable()) }

func decrypt(r io.Reader, secret string, limit Factor) (io.Reader, error) {
	id, err := age.NewScryptIdentity(secret)
	if err != nil {
		return nil, fmt.Errorf("use passphrase: %w", err)
	}
	id.SetMaxWorkFactor(int(limit))
	b := &bounded{ScryptIdentity: id, limit: limit}
	defer func() { release(b.asked) }()
	out, err := age.Decrypt(r, b)
	var wrong *age.NoIdentityMatchError
	switch {
	case errors.As(err, &wrong):
		return nil, ErrWrong
	case err != nil:
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return out, nil
}

// bounded is an identity that looks at the factor of a file before it derives a key.
type bounded struct {
	*age.ScryptIdentity
	limit Factor
	asked Factor
}

// Unwrap implements age.Identity.
func (b *bounded) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if len(stanzas) == 1 && stanzas[0].Type == "scrypt" && len(stanzas[0].Args) == 2 {
		n, err := strconv.Atoi(stanzas[0].Args[1])
		if err == nil && Factor(n) > b.limit {
			return nil, fmt.Errorf("work factor %d, up to %d are accepted: %w", n, b.limit, ErrMemory)
		}
		b.asked = Factor(n)
	}
	return b.ScryptIdentity.Unwrap(stanzas)
}

// release gives the memory of a large derivation back to the system. Until the next collection of a process that does
// little it would stay for minutes.
func release(f Factor) {
	if f > Least {
		debug.FreeOSMemory()
	}
}
