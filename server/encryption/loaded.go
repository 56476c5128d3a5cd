package encryption

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/kubeclient"
)

// metric is the metric in which the API server reports the encryption config that it has loaded.
const metric = "apiserver_encryption_config_controller_last_config_info{"

// loadTimeout bounds how long the API servers may take to load the file: they look every few seconds, and once a minute
// where they are upstream's own.
const loadTimeout = 3 * time.Minute

// loadPoll is the pause between two looks at the metric, which cannot be watched.
const loadPoll = time.Second

// waitLoaded waits until every API server uses the file as it is.
func (r *Rotation) waitLoaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	_, hash, err := load(r.cfg.File)
	if err != nil {
		return err
	}
	rc, err := r.cfg.REST()
	if err != nil {
		return err
	}
	all, err := apiServers(ctx, rc)
	if err != nil {
		return err
	}
	tick := time.NewTicker(loadPoll)
	defer tick.Stop()
	var late []string // at the last look that was not cut off
	for {
		now, err := behind(ctx, all, hash)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			if late = now; len(late) == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server %s has not loaded %s within %s; its log has the reason: %w",
				strings.Join(late, ", "), r.cfg.File, loadTimeout, ctx.Err())
		case <-tick.C:
		}
	}
}

// apiServers returns clients of the cluster's API servers by their addresses.
func apiServers(ctx context.Context, rc *rest.Config) (map[string]kubernetes.Interface, error) {
	own, err := kubeclient.Of(rc)
	if err != nil {
		return nil, err
	}
	l, err := own.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: apiservers.Selector})
	if err != nil {
		return nil, fmt.Errorf("list the API servers (umiak has to run): %w", err)
	}
	addrs := apiservers.Of(l.Items)
	if len(addrs) < 2 {
		return map[string]kubernetes.Interface{"of this machine": own}, nil
	}
	out := map[string]kubernetes.Interface{}
	for _, a := range addrs {
		cfg := rest.CopyConfig(rc)
		cfg.Host = "https://" + a
		if out[a], err = kubeclient.Of(cfg); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// behind returns the addresses of the servers that do not use the file with a hash.
func behind(ctx context.Context, all map[string]kubernetes.Interface, hash string) ([]string, error) {
	var out []string
	for _, a := range slices.Sorted(maps.Keys(all)) {
		yes, err := loaded(ctx, all[a], hash)
		if err != nil {
			return nil, fmt.Errorf("ask the API server %s which keys it uses: %w", a, err)
		}
		if !yes {
			out = append(out, a)
		}
	}
	return out, nil
}

// loaded reports whether an API server uses the file with a hash.
func loaded(ctx context.Context, api kubernetes.Interface, hash string) (bool, error) {
	body, err := api.Discovery().RESTClient().Get().AbsPath("/metrics").Stream(ctx)
	if err != nil {
		return false, err
	}
	defer body.Close() //nolint:errcheck // read to the end or given up
	return findHash(body, hash)
}

// findHash reports whether metrics name a hash as that of the file in use.
func findHash(r io.Reader, hash string) (bool, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		labels, ok := strings.CutPrefix(sc.Text(), metric)
		// Another label, apiserver_id_hash, ends alike.
		if ok && strings.Contains(","+labels, `,hash="`+hash+`"`) {
			return true, nil
		}
	}
	return false, sc.Err()
}
