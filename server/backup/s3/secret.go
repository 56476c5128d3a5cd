package s3

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Objects reads objects of the namespace kube-system.
type Objects interface {
	Secret(ctx context.Context, name string) (map[string][]byte, error)
	ConfigMap(ctx context.Context, name string) (map[string]string, error)
}

// Resolve returns the settings with those of ConfigSecret in them; without one, the settings as they are.
func (c Config) Resolve(ctx context.Context, from Objects) (Config, error) {
	if c.ConfigSecret == "" {
		return c, nil
	}
	if from == nil {
		return c, errors.New("snapshot-s3-config-secret: the Secret can be read only while the server runs; give snapshot-s3-bucket and the keys as flags")
	}
	name := c.ConfigSecret
	fail := func(err error) (Config, error) {
		return c, fmt.Errorf("snapshot-s3-config-secret: Secret kube-system/%s: %w", name, err)
	}
	data, err := from.Secret(ctx, name)
	if err != nil {
		return fail(err)
	}
	out := c
	out.ConfigSecret = ""
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(data)) {
		short, ok := strings.CutPrefix(key, "etcd-s3-") // k3s' names
		if !ok {
			short, ok = strings.CutPrefix(key, "snapshot-s3-")
		}
		value := strings.TrimSpace(string(data[key]))
		if !ok || value == "" {
			continue
		}
		if short == "endpoint-ca-name" {
			m, err := from.ConfigMap(ctx, value)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: ConfigMap kube-system/%s: %w", key, value, err))
			}
			for _, k := range slices.Sorted(maps.Keys(m)) {
				out.endpointPEM += m[k] + "\n"
			}
			continue
		}
		if err := out.set(short, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if out.Bucket == "" {
		errs = append(errs, errors.New("etcd-s3-bucket: it is not set"))
	}
	if err := errors.Join(append(errs, out.Validate())...); err != nil {
		return fail(err)
	}
	return out, nil
}

// set sets one value of a Secret. Errors do not quote it.
func (c *Config) set(key, value string) (err error) {
	texts := map[string]*string{"bucket": &c.Bucket, "endpoint": &c.Endpoint, "folder": &c.Folder, "region": &c.Region,
		"access-key": &c.AccessKey, "secret-key": &c.SecretKey, "session-token": &c.SessionToken, "proxy": &c.Proxy}
	if text := texts[key]; text != nil {
		*text = value
		return nil
	}
	switch key {
	case "endpoint-ca":
		c.endpointPEM += value + "\n"
	case "bucket-lookup-type":
		if _, ok := lookups[value]; !ok {
			return errors.New("it is not auto, dns or path")
		}
		c.Lookup = value
	case "skip-ssl-verify":
		c.SkipSSLVerify, err = strconv.ParseBool(value)
	case "insecure":
		c.Insecure, err = strconv.ParseBool(value)
	case "timeout":
		c.Timeout, err = time.ParseDuration(value)
	case "retention": // snapshot-retention is for both places
	default:
		return errors.New("there is no such setting of a bucket")
	}
	if err != nil {
		return errors.New("its value cannot be read")
	}
	return nil
}
