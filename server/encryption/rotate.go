package encryption

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/kubeclient"
)

// Status is how things are.
type Status struct {
	Write     Key      `json:"writeKey"`
	Read      []Key    `json:"readKeys"`
	Resources []string `json:"resources"`
	Phase     string   `json:"rotation"`
	// Loaded says whether every API server uses the file as it is; nil if one cannot be asked. Behind are those that
	// do not.
	Loaded *bool    `json:"loaded,omitempty"`
	Behind []string `json:"behind,omitempty"`
	Stored Counts   `json:"stored,omitempty"`
	// Remark is why something is missing.
	Remark string `json:"remark,omitempty"`
}

// Keeper looks after the keys in one file.
type Keeper struct {
	File string
	// Cipher is that of a new key; "" means that of the present one.
	Cipher string
	// REST is the administrator's way to the API server.
	REST *rest.Config
	// Share gives a configuration to all servers before any uses it, and puts it into the file here.
	Share func(ctx context.Context, raw []byte) error
	// Count reads the datastore; nil or an error where it cannot.
	Count func(ctx context.Context, resources []string) (Counts, error)
	// Progress is told what goes on.
	Progress func(format string, a ...any)
}

// Status tells how things are; what needs a running server is left out where there is none.
func (k *Keeper) Status(ctx context.Context) (*Status, error) {
	c, hash, err := load(k.File)
	if err != nil {
		return nil, err
	}
	s := &Status{Write: c.keys[0].Key, Resources: c.resources, Phase: c.phase()}
	for _, key := range c.keys {
		s.Read = append(s.Read, key.Key)
	}
	var remarks []error
	if k.Count != nil {
		if s.Stored, err = k.Count(ctx, c.resources); err != nil {
			remarks = append(remarks, err)
		}
	}
	if k.REST != nil {
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		all, err := k.servers(short)
		if err == nil {
			s.Behind, err = behind(short, all, hash)
		}
		if err != nil {
			remarks = append(remarks, err)
		} else {
			yes := len(s.Behind) == 0
			s.Loaded = &yes
		}
	}
	if err := errors.Join(remarks...); err != nil {
		s.Remark = err.Error()
	}
	return s, nil
}

// ErrBusy means that another process rotates.
var ErrBusy = errors.New("another `umiak secrets-encrypt rotate` is at work")

// Rotate puts a new key in the place of the present one, or goes on with a rotation that was cut off. It may
// be stopped at any moment and called again. cipher "" means Keeper.Cipher.
func (k *Keeper) Rotate(ctx context.Context, cipher string) error {
	if cipher != "" && !slices.Contains(Ciphers, cipher) {
		return fmt.Errorf("--key-type: %q is not one of %s", cipher, strings.Join(Ciphers, ", "))
	}
	unlock, err := lock(k.File + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if err := k.awaitReady(ctx); err != nil {
		return err
	}
	cfg := rest.CopyConfig(k.REST)
	cfg.QPS = -1 // priority and fairness of the API server is the limit
	objects, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	c, _, err := load(k.File)
	if err != nil {
		return err
	}
	if c.phase() == PhaseNone {
		if cipher == "" {
			cipher = cmp.Or(k.Cipher, c.keys[0].Cipher)
		}
		if err := c.announce(cipher); err != nil {
			return err
		}
		if err := k.put(ctx, c); err != nil {
			return err
		}
		k.Progress("%s was made; it can be read from now on", c.keys[len(c.keys)-1])
	} else if next := c.keys[c.newest()]; cipher != "" && cipher != next.Cipher {
		return fmt.Errorf("a rotation to a key of type %s is under way: finish it with `umiak secrets-encrypt rotate` without --key-type", next.Cipher)
	} else {
		if err := k.put(ctx, c); err != nil {
			return err
		}
		k.Progress("going on with the rotation to %s", next)
	}
	if c.phase() == PhaseAnnounced {
		if err := k.waitLoaded(ctx); err != nil {
			return err
		}
		c.promote()
		if err := k.put(ctx, c); err != nil {
			return err
		}
		k.Progress("%s is written with from now on", c.keys[0])
	}
	if err := k.waitLoaded(ctx); err != nil {
		return err
	}
	for _, r := range c.resources {
		if err := k.rewrite(ctx, objects, r); err != nil {
			return err
		}
	}
	if err := k.allWith(ctx, c); err != nil {
		return err
	}
	var gone []string
	for _, old := range c.keys[1:] {
		gone = append(gone, old.String())
	}
	c.retire()
	if err := k.put(ctx, c); err != nil {
		return err
	}
	if err := k.waitLoaded(ctx); err != nil {
		return err
	}
	k.Progress("%s is gone", strings.Join(gone, ", "))
	return nil
}

// String keeps secrets out of what is printed.
func (k secretKey) String() string { return k.Key.String() }

// lock lets one rotation run at a time.
func lock(file string) (unlock func(), err error) {
	unlock, err = filelock.Try(file)
	if errors.Is(err, filelock.ErrHeld) {
		return nil, ErrBusy
	}
	if err != nil {
		return nil, fmt.Errorf("lock the encryption config (run this as root): %w", err)
	}
	return unlock, nil
}

// put has every server know a configuration.
func (k *Keeper) put(ctx context.Context, c *config) error {
	raw, err := c.encode()
	if err != nil {
		return err
	}
	return k.Share(ctx, raw)
}

// servers are the API servers of the cluster, by their addresses.
func (k *Keeper) servers(ctx context.Context) (map[string]kubernetes.Interface, error) {
	own, err := kubeclient.Of(k.REST)
	if err != nil {
		return nil, err
	}
	l, err := own.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: apiservers.Selector})
	if err != nil {
		return nil, fmt.Errorf("ask the API server (umiak has to run): %w", err)
	}
	addrs := apiservers.Of(l.Items)
	if len(addrs) < 2 {
		return map[string]kubernetes.Interface{"of this machine": own}, nil
	}
	out := map[string]kubernetes.Interface{}
	for _, a := range addrs {
		cfg := rest.CopyConfig(k.REST)
		cfg.Host = "https://" + a
		if out[a], err = kubeclient.Of(cfg); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// behind are those servers that do not use the file with that hash.
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

// allWith makes sure that nothing needs an old key any more.
func (k *Keeper) allWith(ctx context.Context, c *config) error {
	if k.Count == nil {
		return nil
	}
	counts, err := k.Count(ctx, c.resources)
	if err != nil {
		return fmt.Errorf("%w; the old key was kept: run `umiak secrets-encrypt rotate` again", err)
	}
	if n := counts.others(c.keys[0].Key); n > 0 {
		return fmt.Errorf("%d objects are not stored with %s yet; the old key was kept: run `umiak secrets-encrypt rotate` again", n, c.keys[0])
	}
	return nil
}

// metric is where the API server says which file it has loaded.
const metric = "apiserver_encryption_config_controller_last_config_info{"

// loaded says whether the API server uses the file with that hash.
func loaded(ctx context.Context, api kubernetes.Interface, hash string) (bool, error) {
	body, err := api.Discovery().RESTClient().Get().AbsPath("/metrics").Stream(ctx)
	if err != nil {
		return false, err
	}
	defer body.Close() //nolint:errcheck // read to the end or given up
	return findHash(body, hash)
}

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

// patience is how long the API server may take to load the file; it looks every few seconds, and once a
// minute where it is upstream's own.
const patience = 3 * time.Minute

func (k *Keeper) waitLoaded(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, hash, err := load(k.File)
	if err != nil {
		return err
	}
	if err := k.awaitReady(ctx); err != nil {
		return err
	}
	all, err := k.servers(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Second) // a metric cannot be watched
	defer tick.Stop()
	for {
		late, err := behind(ctx, all, hash)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w; run `umiak secrets-encrypt rotate` again when it is back", err)
		}
		if err == nil && len(late) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server %s has not loaded %s within %s; its log says why: %w",
				strings.Join(late, ", "), k.File, patience, ctx.Err())
		case <-tick.C:
		}
	}
}

// writers is how many objects are written at once: the datastore commits them together.
const writers = 8

// rewrite has the API server write every object of a resource as it is. It encrypts it with the present key
// then, and does nothing where it is so already. An object that somebody else has changed or deleted
// meanwhile needs no more of us.
func (k *Keeper) rewrite(ctx context.Context, objects dynamic.Interface, name string) error {
	resource, group, _ := strings.Cut(name, ".")
	r := objects.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource})
	var done atomic.Int64
	opts := metav1.ListOptions{Limit: page}
	for {
		list, err := r.List(ctx, opts)
		if apierrors.IsResourceExpired(err) {
			opts.Continue = "" // took too long: begin again, which costs only requests
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w; run `umiak secrets-encrypt rotate` again to go on", name, err)
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(writers)
		for i := range list.Items {
			o := &list.Items[i]
			g.Go(func() error {
				if err := put(ctx, r, o); err != nil {
					return fmt.Errorf("write %s %s/%s anew: %w; run `umiak secrets-encrypt rotate` again to go on",
						name, o.GetNamespace(), o.GetName(), err)
				}
				done.Add(1)
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		left := int64(0)
		if n := list.GetRemainingItemCount(); n != nil {
			left = *n
		}
		k.Progress("%s: %d of %d written anew", name, done.Load(), done.Load()+left)
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

func put(ctx context.Context, r dynamic.NamespaceableResourceInterface, o *unstructured.Unstructured) error {
	var i dynamic.ResourceInterface = r
	if ns := o.GetNamespace(); ns != "" {
		i = r.Namespace(ns)
	}
	_, err := i.Update(ctx, o, metav1.UpdateOptions{FieldManager: "umiak-secrets-encrypt"})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
