package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/datastore/etcd"
)

// ForgetRequest asks to give up a server that is lost, or that has joined and never started, by its name or address.
type ForgetRequest struct {
	Server string `json:"server"`
}

// ForgetResult lists the steps that were taken, a sentence each.
type ForgetResult struct {
	Done []string `json:"done"`
}

// MovedRequest gives the addresses of servers that this one cannot find, by their names.
type MovedRequest struct {
	Addresses map[string]string `json:"addresses"`
}

// ParseMoved reads a MovedRequest from arguments NAME=ADDRESS.
func ParseMoved(args []string) (MovedRequest, error) {
	r := MovedRequest{Addresses: map[string]string{}}
	for _, a := range args {
		name, address, ok := strings.Cut(a, "=")
		if !ok || name == "" || address == "" {
			return MovedRequest{}, fmt.Errorf("%q is not NAME=ADDRESS, as s2=10.1.0.2", a)
		}
		r.Addresses[name] = address
	}
	return r, nil
}

// forgetTimeout bounds the steps of forgetting a server together.
const forgetTimeout = 20 * time.Second

// Forget removes a server from the etcd cluster, deletes its Node and frees its name. It refuses for one that is
// healthy.
func (a *Admission) Forget(ctx context.Context, r ForgetRequest) (ForgetResult, error) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	var out ForgetResult
	which := r.Server
	name := which
	if which == a.cfg.Name {
		return out, fmt.Errorf("forget %s: it is this server", which)
	}
	tokens, err := a.cfg.Access.Tokens()
	if err != nil {
		return out, err
	}
	if err := healthyNode(ctx, tokens.Client, name); err != nil {
		return out, fmt.Errorf("forget %s: %w", which, err)
	}
	if cluster := a.cfg.Datastore.Etcd(); cluster != nil {
		m, err := cluster.Forget(ctx, which)
		switch {
		case err == nil:
			name = m.Name
			out.Done = append(out.Done, fmt.Sprintf("the server at %s is no member any more", m.Peer))
		case errors.Is(err, etcd.ErrHealthy):
			return out, fmt.Errorf("%w; to take a running server out, stop it first, or delete its node", err)
		case !errors.Is(err, etcd.ErrNoMember):
			return out, err
		}
	}
	if name == "" { // it has never started
		return out, nil
	}
	err = tokens.Client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if err == nil {
		out.Done = append(out.Done, fmt.Sprintf("node %s is deleted", name))
	} else if !apierrors.IsNotFound(err) {
		return out, fmt.Errorf("forget %s: delete its node: %w", which, err)
	}
	freed, err := tokens.Free(ctx, name)
	if err != nil {
		return out, fmt.Errorf("forget %s: %w", which, err)
	}
	if freed {
		out.Done = append(out.Done, fmt.Sprintf("the name %s is free", name))
	}
	if err := tokens.WithdrawNames(ctx, name); err != nil {
		return out, fmt.Errorf("forget %s: %w", which, err)
	}
	if err := a.authorities.forget(ctx, name); err != nil {
		return out, fmt.Errorf("forget %s: %w", which, err)
	}
	if len(out.Done) == 0 {
		return out, fmt.Errorf("forget %s: there is no member, no node and no claimed name like this; "+
			"`umiak status` lists the members", which)
	}
	return out, nil
}

// healthyNode fails if a node is ready.
func healthyNode(ctx context.Context, client kubernetes.Interface, name string) error {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) || apierrors.IsInvalid(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return fmt.Errorf("node %s is ready; stop that server first, or run `umiak kubectl delete node %s` if it is to go",
				name, name)
		}
	}
	return nil
}

// Moved gives the etcd member of this server the new addresses of others.
func (a *Admission) Moved(r MovedRequest) error {
	cluster := a.cfg.Datastore.Etcd()
	if cluster == nil {
		return errors.New("the state is not in etcd here, or it is not open yet: servers of a database need no address of " +
			"each other")
	}
	for name, address := range r.Addresses {
		host := strings.Trim(address, "[]")
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return fmt.Errorf("%s=%s: this is not an IP address", name, address)
		}
		if err := cluster.Moved(name, net.JoinHostPort(ip.String(), strconv.Itoa(etcd.PeerPort))); err != nil {
			return err
		}
	}
	return nil
}
