package s3_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"os"
	"testing"
)

// cut is a body that ends in the middle.
type cut struct {
	io.ReadCloser
	read *int
}

func (c cut) Read(p []byte) (int, error) {
	if *c.read > 1<<20 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(p)
	*c.read += n
	return n, err
}

func trusting(t *testing.T, ca string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}
