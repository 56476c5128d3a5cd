package s3

import (
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/umiak-io/umiak/internal/httpproxy"
)

// lookups are the values of snapshot-s3-bucket-lookup-type.
var lookups = map[string]minio.BucketLookupType{"": minio.BucketLookupAuto, "auto": minio.BucketLookupAuto,
	"dns": minio.BucketLookupDNS, "path": minio.BucketLookupPath}

// metadataTimeout bounds one request to a cloud's metadata server, which does not exist elsewhere.
const metadataTimeout = 10 * time.Second

// credentials returns the keys of the settings or, without any, those of the variables AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or else of the role that a cloud has given to this machine.
func (c Config) credentials() (*credentials.Credentials, error) {
	if c.AccessKey != "" {
		secret, err := c.secret()
		if err != nil {
			return nil, err
		}
		return credentials.NewStaticV4(c.AccessKey, secret, c.SessionToken), nil
	}
	proxy := httpproxy.Proxy()
	client := &http.Client{Timeout: metadataTimeout, Transport: &http.Transport{
		TLSHandshakeTimeout: metadataTimeout, IdleConnTimeout: time.Second,
		Proxy: func(r *http.Request) (*url.URL, error) {
			if net.ParseIP(r.URL.Hostname()) != nil { // the metadata server, which no proxy reaches
				return nil, nil
			}
			return proxy(r)
		},
	}}
	return credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{},
		&credentials.IAM{Client: client}}), nil
}
