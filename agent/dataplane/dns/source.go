package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/dns/corefile"
	"github.com/umiak-io/umiak/internal/atomicfile"
)

// source is the configuration as users wrote it: ConfigMap name -> its data.
type source struct {
	Files map[string]map[string]string `json:"files"`

	wanted string // the rewritten text with forwarding, kept to recognise it again
}

func (s source) corefile() string { return s.Files[ConfigMap]["Corefile"] }

// paths are the files that `import` finds.
func (s source) paths() map[string]string {
	out := map[string]string{}
	for k, v := range s.Files[ConfigMap] {
		out[mainFiles+k] = v
	}
	for k, v := range s.Files[CustomConfigMap] {
		out[customFiles+k] = v
	}
	return out
}

func cloneFiles(in map[string]map[string]string) map[string]map[string]string {
	if in == nil {
		return map[string]map[string]string{}
	}
	return maps.Clone(in) // the inner maps are never changed
}

// DefaultCorefile is the Corefile of manifests/dns.yaml, for a node that has not read the cluster's yet.
func DefaultCorefile(domain string) string {
	return strings.ReplaceAll(defaultCorefile, "${CLUSTER_DOMAIN}", domain)
}

const defaultCorefile = `.:53 {
    errors
    health
    ready
    kubernetes ${CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30 {
        disable success ${CLUSTER_DOMAIN}
        disable denial ${CLUSTER_DOMAIN}
    }
    loop
    reload
    loadbalance
    import /etc/coredns/custom/*.override
}
import /etc/coredns/custom/*.server
`

// loadState returns nil without an error when there is none.
func loadState(path string) (*source, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read kept DNS configuration: %w", err)
	}
	var s source
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read kept DNS configuration %s: %w", path, err)
	}
	return &s, nil
}

// saveState writes only when something changed: flash wears.
func saveState(path string, s source) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode DNS configuration: %w", err)
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	return atomicfile.Write(path, b, 0o600)
}

// readResolvConf returns the name servers of a resolv.conf; no path means none.
func readResolvConf(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read resolvers: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	servers, err := corefile.ParseResolvConf(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read resolvers in %s: %w", path, err)
	}
	return servers, nil
}
