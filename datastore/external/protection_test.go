package external_test

import (
	"testing"

	"github.com/umiak-io/umiak/datastore/external"
)

func TestUnprotected(t *testing.T) {
	ca := external.TLS{CAFile: "/ca.crt"}
	for _, c := range []struct {
		endpoint string
		tls      external.TLS
		bad      bool
	}{
		{"postgres://u:p@db:5432/k", external.TLS{}, true},
		{"postgres://u:p@db:5432/k?sslmode=require", external.TLS{}, true},
		{"postgres://u:p@127.0.0.1,db:5432/k", external.TLS{}, true},
		{"postgres://u:p@127.0.0.1:5432/k", external.TLS{}, false},
		{"postgres://u:p@[::1]:5432/k", external.TLS{}, false},
		{"postgres://u:p@/k?host=/run/postgresql", external.TLS{}, false},
		{"postgres://u:p@db/k?sslmode=verify-full&sslrootcert=/ca", external.TLS{}, false},
		{"postgres://u:p@db:5432/k", ca, false},
		{"postgres://u:p@db:5432/k?sslmode=disable", ca, true},
		{"mysql://u:p@tcp(db:3306)/k", external.TLS{}, true},
		{"mysql://u:p@tcp(db:3306)/k?tls=skip-verify", external.TLS{}, true},
		{"mysql://u:p@tcp(db:3306)/k?tls=true", external.TLS{}, false},
		{"mysql://u:p(@tcp(db:3306)/k", ca, false},
		{"mysql://u:p@unix(/run/mysqld.sock)/k", external.TLS{}, false},
		{"mysql://u:p@tcp(localhost:3306)/k", external.TLS{}, false},
		{"mysql://u:p@/k", external.TLS{}, false},
		{"nats://db:4222?bucket=k", external.TLS{}, true},
		{"nats://db:4222?bucket=k", ca, false},
		{"http://10.0.0.1:2379", external.TLS{}, true},
		{"http://127.0.0.1:2379,http://e:2379", external.TLS{}, true},
		{"https://e:2379", external.TLS{}, false},
	} {
		if got := external.Unprotected(c.endpoint, c.tls); (got != "") != c.bad {
			t.Errorf("%s, %+v: %q", c.endpoint, c.tls, got)
		}
	}
}
