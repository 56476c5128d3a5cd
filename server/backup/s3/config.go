package s3

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Config holds the settings. S3 is used if Bucket or ConfigSecret is set.
type Config struct {
	Bucket        string        `key:"snapshot-s3-bucket" usage:"S3 bucket in which snapshots are kept as well (default: none)"`
	Disable       bool          `key:"snapshot-s3-disable" usage:"keep no snapshots in snapshot-s3-bucket"`
	Endpoint      string        `key:"snapshot-s3-endpoint" default:"s3.amazonaws.com" usage:"HOST or HOST:PORT of the S3 server"`
	Folder        string        `key:"snapshot-s3-folder" usage:"folder in the bucket, one for each cluster"`
	Region        string        `key:"snapshot-s3-region" default:"us-east-1" usage:"region of the bucket"`
	AccessKey     string        `key:"snapshot-s3-access-key" usage:"id of the key for the S3 server"`
	SecretKey     string        `key:"snapshot-s3-secret-key" secret:"true" usage:"the key itself"`
	SecretKeyFile string        `key:"snapshot-s3-secret-key-file" secret:"file" usage:"file that holds the key"`
	SessionToken  string        `key:"snapshot-s3-session-token" secret:"true" usage:"session token of temporary keys"`
	ConfigSecret  string        `key:"snapshot-s3-config-secret" usage:"Secret in kube-system that holds the settings of the bucket, instead of the other snapshot-s3 settings"`
	Proxy         string        `key:"snapshot-s3-proxy" secret:"true" usage:"URL of the HTTP proxy to the S3 server (default: as the environment says)"`
	Lookup        string        `key:"snapshot-s3-bucket-lookup-type" default:"auto" values:"auto,dns,path" usage:"where the bucket's name stands in URLs"`
	EndpointCA    string        `key:"snapshot-s3-endpoint-ca" usage:"file with the certificates of authorities that the S3 server's is signed by"`
	SkipSSLVerify bool          `key:"snapshot-s3-skip-ssl-verify" usage:"do not verify the S3 server's certificate"`
	Insecure      bool          `key:"snapshot-s3-insecure" usage:"speak plain HTTP to the S3 server"`
	Timeout       time.Duration `key:"snapshot-s3-timeout" default:"5m" usage:"how long one upload, download or listing may take"`

	endpointPEM string // certificates of authorities, from a Secret or ConfigMap
}

// On reports whether there is a bucket, and it is in use.
func (c Config) On() bool { return (c.Bucket != "" || c.ConfigSecret != "") && !c.Disable }

// Place returns the URI of the folder and its server, or where both are described.
func (c Config) Place() string {
	if c.Bucket == "" {
		return "the bucket of Secret kube-system/" + c.ConfigSecret
	}
	return c.URI() + " at " + c.Endpoint
}

// URI returns the URI of the folder in the bucket.
func (c Config) URI() string { return "s3://" + path.Join(c.Bucket, c.Folder) }

var (
	validBucket = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	validFolder = regexp.MustCompile(`^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$`)
)

// Validate returns all invalid settings.
func (c Config) Validate() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("snapshot-s3-"+key+": "+format, args...))
	}
	for _, p := range []struct{ key, path string }{{"secret-key-file", c.SecretKeyFile},
		{"endpoint-ca", c.EndpointCA}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			fail(p.key, "%q is not an absolute path", p.path)
		}
	}
	if c.SecretKey != "" && c.SecretKeyFile != "" {
		fail("secret-key-file", "snapshot-s3-secret-key is set as well; set one of them")
	}
	if c.Proxy != "" {
		if u, err := url.Parse(c.Proxy); err != nil || u.Hostname() == "" ||
			!slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
			fail("proxy", "it is not a URL such as http://proxy.example:3128") // it may hold a password
		}
	}
	if c.ConfigSecret != "" {
		if e := validation.IsDNS1123Subdomain(c.ConfigSecret); len(e) > 0 {
			fail("config-secret", "%q is not the name of a Secret: %s", c.ConfigSecret, strings.Join(e, ", "))
		}
		if c.Bucket != "" {
			fail("config-secret", "snapshot-s3-bucket is set as well; the Secret holds all settings of the bucket, so set "+
				"one of them")
		}
		return errors.Join(errs...)
	}
	if !c.On() {
		if c.Bucket == "" && (c.AccessKey != "" || c.SecretKey != "" || c.SecretKeyFile != "" || c.Folder != "") {
			fail("bucket", "it is not set, but other settings of S3 are; nothing would be uploaded")
		}
		return errors.Join(errs...)
	}
	if !validBucket.MatchString(c.Bucket) {
		fail("bucket", "%q is not a bucket name: 3 to 63 lower-case letters, digits, dots and dashes", c.Bucket)
	}
	if strings.Contains(c.Endpoint, "/") || c.Endpoint == "" {
		fail("endpoint", "%q is not HOST or HOST:PORT; the protocol is https, or http with snapshot-s3-insecure",
			c.Endpoint)
	}
	if c.Folder != "" && (!validFolder.MatchString(c.Folder) || strings.Contains("/"+c.Folder+"/", "/./") ||
		strings.Contains("/"+c.Folder+"/", "/../")) {
		fail("folder", "%q is not a path such as clusters/pi, without slashes at its ends", c.Folder)
	}
	switch secret := c.SecretKey != "" || c.SecretKeyFile != ""; {
	case secret && c.AccessKey == "":
		fail("access-key", "it is not set, but the secret key is; set both, or neither to use AWS_* variables or the "+
			"machine's role")
	case !secret && c.AccessKey != "":
		fail("secret-key-file", "it is not set; the access key needs it, or snapshot-s3-secret-key")
	}
	if c.SessionToken != "" && c.AccessKey == "" {
		fail("session-token", "needs snapshot-s3-access-key")
	}
	if c.Insecure && (c.SkipSSLVerify || c.EndpointCA != "") {
		fail("insecure", "plain HTTP has no certificate for snapshot-s3-endpoint-ca and snapshot-s3-skip-ssl-verify")
	}
	if c.Timeout <= 0 {
		fail("timeout", "%s is not more than none", c.Timeout)
	}
	return errors.Join(errs...)
}

// maxSecret bounds the file of the secret key in bytes.
const maxSecret = 4096

// secret returns the secret key. It reads the file each time, so that a new key needs no restart.
func (c Config) secret() (string, error) {
	if c.SecretKeyFile == "" {
		return c.SecretKey, nil
	}
	st, err := os.Stat(c.SecretKeyFile)
	if err == nil && st.Size() > maxSecret {
		err = fmt.Errorf("%s has %d bytes, a key at most %d", c.SecretKeyFile, st.Size(), maxSecret)
	}
	var raw []byte
	if err == nil {
		raw, err = os.ReadFile(c.SecretKeyFile)
	}
	if err != nil {
		return "", fmt.Errorf("snapshot-s3-secret-key-file: %w", err)
	}
	s := strings.TrimSpace(string(raw))
	if s == "" {
		return "", fmt.Errorf("snapshot-s3-secret-key-file: %s is empty", c.SecretKeyFile)
	}
	return s, nil
}
