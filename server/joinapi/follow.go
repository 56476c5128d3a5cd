package joinapi

import (
	"context"
	"crypto/subtle"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/token"
)

// known is the state of the Secrets that a watch follows.
type known struct {
	secrets corelisters.SecretNamespaceLister
}

// follow watches the Secrets until ctx ends, and returns when the first list is there. It calls changed for the two
// tokens of the first start, and updates members.
func (t Tokens) follow(ctx context.Context, changed func(), members *Members) (*known, func(), error) {
	f := informers.NewSharedInformerFactoryWithOptions(t.Client, 0, informers.WithNamespace(Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = Label }),
		informers.WithTransform(func(o any) (any, error) {
			if s, ok := o.(*corev1.Secret); ok {
				s.ManagedFields = nil
			}
			return o, nil
		}))
	inf := f.Core().V1().Secrets()
	tell := func(o any) {
		if s, ok := o.(*corev1.Secret); ok && (s.Name == tokenPrefix+ServerID || s.Name == tokenPrefix+AgentID) {
			changed()
		} else if ok {
			members.set(s)
		}
	}
	reg, err := inf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell,
		UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			if s, ok := o.(*corev1.Secret); ok {
				members.gone(s)
			}
		}})
	if err != nil {
		return nil, nil, fmt.Errorf("watch tokens: %w", err)
	}
	f.Start(ctx.Done())
	for _, ok := range f.WaitForCacheSync(ctx.Done()) {
		if !ok {
			f.Shutdown()
			return nil, nil, fmt.Errorf("watch tokens: %w", context.Cause(ctx))
		}
	}
	if !cache.WaitForCacheSync(ctx.Done(), reg.HasSynced) { // what members know
		f.Shutdown()
		return nil, nil, fmt.Errorf("watch tokens: %w", context.Cause(ctx))
	}
	return &known{inf.Lister().Secrets(Namespace)}, f.Shutdown, nil
}

// token returns the record of a token, or the reason of its refusal. Only a machine that has the secret learns whether
// an id exists and whether the token has expired.
func (k *known) token(id, secret string, now time.Time) (Record, string) {
	const unknown = "this token is not known here; it may have been revoked, or belong to another cluster (`umiak token list` on a server)"
	ids := []string{id}
	if id == "" {
		ids = []string{ServerID, AgentID} // a password: of the two that a user may set
	}
	hash := []byte(token.HashSecret(secret))
	for _, i := range ids {
		s, err := k.secrets.Get(tokenPrefix + i)
		if err != nil {
			continue
		}
		r, err := parse(s)
		if err != nil || id == "" && !r.Password {
			continue
		}
		if subtle.ConstantTimeCompare([]byte(r.hash), hash) != 1 {
			switch {
			case subtle.ConstantTimeCompare([]byte(r.previous), hash) == 1 && now.Before(r.previousEnds):
				return r, ""
			case slices.Contains(r.former, string(hash)): // who knows it may know that it was one
				return r, fmt.Sprintf("the secret of token %s was replaced; `umiak token create` on a server makes a token, and %s has the present one there", r.ID, "data-dir/server")
			}
			continue
		}
		switch st := r.State(now); st {
		case "valid", "used up": // whether a use is left is decided when it is taken
			return r, ""
		default:
			return r, fmt.Sprintf("token %s is %s; make a new one with `umiak token create` on a server", r.ID, st)
		}
	}
	return Record{}, unknown
}

// guessable reports whether what comes with an id is compared with a secret that a person may have chosen.
func (k *known) guessable(id string) bool {
	if id == "" {
		return true
	}
	s, err := k.secrets.Get(tokenPrefix + id)
	if err != nil {
		return false
	}
	r, err := parse(s)
	return err == nil && r.Password
}

// node finds the Secret of a node name, or nil.
func (k *known) node(name string) *corev1.Secret {
	s, err := k.secrets.Get(name + nodeSuffix)
	if err != nil {
		return nil
	}
	return s
}
