package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// objects are a Secret and a ConfigMap named a.
type objects struct {
	secret map[string]string
	config map[string]string
}

func (o objects) Secret(_ context.Context, name string) (map[string][]byte, error) {
	if name != "a" {
		return nil, errors.New("not found")
	}
	out := map[string][]byte{}
	for k, v := range o.secret {
		out[k] = []byte(v)
	}
	return out, nil
}

func (o objects) ConfigMap(_ context.Context, name string) (map[string]string, error) {
	if name != "a" {
		return nil, errors.New("not found")
	}
	return o.config, nil
}

func TestSettingsInASecret(t *testing.T) {
	base := Config{ConfigSecret: "a", Endpoint: "s3.amazonaws.com", Region: "us-east-1", Timeout: time.Minute, Lookup: "auto"}
	// As k3s documents it.
	c, err := base.Resolve(t.Context(), objects{map[string]string{
		"etcd-s3-endpoint": "minio.example:9000", "etcd-s3-endpoint-ca": "PEM1\n", "etcd-s3-endpoint-ca-name": "a",
		"etcd-s3-skip-ssl-verify": "false", "etcd-s3-access-key": "id", "etcd-s3-secret-key": "key",
		"etcd-s3-session-token": "", "etcd-s3-bucket": "snaps", "etcd-s3-bucket-lookup-type": "path", "etcd-s3-folder": "pi",
		"etcd-s3-insecure": "false", "etcd-s3-timeout": "10m", "etcd-s3-proxy": "http://p:1", "etcd-s3-retention": "9",
		"comment": "x",
	}, map[string]string{"ca.crt": "PEM2"}})
	want := Config{Bucket: "snaps", Endpoint: "minio.example:9000", Folder: "pi", Region: "us-east-1", AccessKey: "id",
		SecretKey: "key", Proxy: "http://p:1", Lookup: "path", Timeout: 10 * time.Minute, endpointPEM: "PEM1\nPEM2\n"}
	if err != nil || c != want {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := base.Resolve(t.Context(), objects{map[string]string{"snapshot-s3-bucket": "snaps"}, nil}); err != nil ||
		c.Bucket != "snaps" || c.Endpoint != base.Endpoint {
		t.Errorf("%+v, %v", c, err)
	}
	for want, secret := range map[string]map[string]string{
		"etcd-s3-bucket: it is not set":                    {"etcd-s3-folder": "pi"},
		"etcd-s3-timeout: its value cannot be read":        {"etcd-s3-timeout": "s3cr3t"},
		"etcd-s3-buckets: there is no such setting":        {"etcd-s3-buckets": "s3cr3t"},
		"snapshot-s3-secret-key-file: it is not set":       {"etcd-s3-bucket": "snaps", "etcd-s3-access-key": "id"},
		"snapshot-s3-proxy: it is not a URL":               {"etcd-s3-bucket": "snaps", "etcd-s3-proxy": "s3cr3t"},
		"etcd-s3-endpoint-ca-name: ConfigMap kube-system/": {"etcd-s3-bucket": "snaps", "etcd-s3-endpoint-ca-name": "b"},
	} {
		if _, err := base.Resolve(t.Context(), objects{secret, nil}); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.HasPrefix(err.Error(), "snapshot-s3-config-secret: Secret kube-system/a: ") ||
			strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%v: %v", secret, err)
		}
	}
	base.ConfigSecret = "b"
	if _, err := base.Resolve(t.Context(), objects{}); err == nil || !strings.Contains(err.Error(), "kube-system/b: not found") {
		t.Error(err)
	}
	if _, err := base.Resolve(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "only while the server runs") {
		t.Error(err)
	}
}

// TestKeysOfARole: without keys in settings and variables, those count that the cloud gives to the machine.
func TestKeysOfARole(t *testing.T) {
	cloud := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"AccessKeyId":"role-id","SecretAccessKey":"role-key","Token":"role-token","Expiration":"2099-01-01T00:00:00Z"}`)
	}))
	defer cloud.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.URL)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // addresses are reached without it
	creds, err := Config{}.credentials()
	if err != nil {
		t.Fatal(err)
	}
	v, err := creds.GetWithContext(nil)
	if got := v.AccessKeyID + " " + v.SecretAccessKey + " " + v.SessionToken; err != nil ||
		got != "role-id role-key role-token" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestKeysOfTheEnvironment: without keys in the settings the variables of AWS count.
func TestKeysOfTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "env-id env-key env-token"},
		{Config{AccessKey: "id", SecretKey: "key"}, "id key "},
		{Config{AccessKey: "id", SecretKey: "key", SessionToken: "token"}, "id key token"},
	} {
		t.Setenv("AWS_ACCESS_KEY_ID", "env-id")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "env-key")
		t.Setenv("AWS_SESSION_TOKEN", "env-token")
		creds, err := c.cfg.credentials()
		if err != nil {
			t.Fatal(err)
		}
		v, err := creds.GetWithContext(nil)
		if got := v.AccessKeyID + " " + v.SecretAccessKey + " " + v.SessionToken; err != nil || got != c.want {
			t.Errorf("%s, %v", got, err)
		}
	}
}
