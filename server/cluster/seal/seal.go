package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrOther means that something was sealed with another secret, for another purpose or beside other data.
var ErrOther = errors.New("it is sealed with another key")

// Key derives a key of 32 bytes from a secret. The same secret gives another key for each purpose.
func Key(secret []byte, purpose string) ([]byte, error) {
	if len(secret) == 0 {
		return nil, fmt.Errorf("derive the key of %s: there is no secret", purpose)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of %s: %w", purpose, err)
	}
	return key, nil
}

// Seal encrypts raw with a key of Key. What stands beside it is not encrypted, but cannot be another when it is opened.
func Seal(key, raw, beside []byte) ([]byte, error) {
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, raw, beside), nil
}

// Open decrypts what Seal has encrypted.
func Open(key, sealed, beside []byte) ([]byte, error) {
	a, err := aead(key)
	if err != nil {
		return nil, err
	}
	raw, err := a.Open(nil, nil, sealed, beside)
	if err != nil {
		return nil, ErrOther
	}
	return raw, nil
}

func aead(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}
