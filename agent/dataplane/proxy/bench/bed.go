package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	apiAddr     = "10.89.0.1"
	podRange    = "10.244.0.0/16"
	metricsAddr = "127.0.0.1:10249"
	ourNode     = "ours"
	peerNode    = "peer"
	namespace   = "default"
)

// space is a network namespace with a thread in it.
type space struct {
	work chan func()
	fd   netns.NsHandle
	nl   *netlink.Handle
}

func newSpace() (*space, error) {
	s := &space{work: make(chan func())}
	up := make(chan error)
	go func() {
		runtime.LockOSThread() // children die with this thread, and it with the process
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = netns.Get()
		}
		up <- err
		for f := range s.work {
			f()
		}
	}()
	if err := <-up; err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	var err error
	if s.nl, err = netlink.NewHandleAt(s.fd); err != nil {
		return nil, err
	}
	lo, err := s.nl.LinkByName("lo")
	if err == nil {
		err = s.nl.LinkSetUp(lo)
	}
	return s, err
}

func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

func (s *space) address(dev, addr string) error {
	l, err := s.nl.LinkByName(dev)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	return errors.Join(err, s.nl.AddrAdd(l, a), s.nl.LinkSetUp(l))
}

// plug connects a namespace with the API server's.
func (s *space) plug(to *space, name, addr string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "v" + name
	err := to.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.fd))})
	if err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	port, err := to.nl.LinkByName("v" + name)
	if err != nil {
		return err
	}
	br, err := to.nl.LinkByName("br0")
	if err != nil {
		return err
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	return errors.Join(to.nl.LinkSetMaster(port, br), to.nl.LinkSetUp(port), s.address("eth0", addr+"/24"),
		s.nl.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP(apiAddr)}))
}

// bed is the API server and the two nodes.
type bed struct {
	dir, bin   string
	api        *space
	servers    []*exec.Cmd
	kube       *kubernetes.Clientset
	ours, peer *proxy
	filled     int
}

// proxy is the proxy that is measured.
type proxy struct {
	*space
	name, node, addr string
	command          func() *exec.Cmd
	vip              string // of its probe
}

func newBed(ctx context.Context, bin string) (*bed, error) {
	dir, err := os.MkdirTemp("", "umiak-proxybench-")
	if err != nil {
		return nil, err
	}
	b := &bed{dir: dir, bin: bin}
	if b.api, err = newSpace(); err != nil {
		return b, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := errors.Join(b.api.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}),
		b.api.address("br0", apiAddr+"/24")); err != nil {
		return b, err
	}
	if err := b.startAPI(ctx); err != nil {
		return b, err
	}
	kubeconfig := b.write("kubeconfig", fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"clusters":[{"name":"c","cluster":{"server":"https://%s:6443","insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":"bench"}}]}`, apiAddr))
	conf := b.write("kube-proxy.yaml", fmt.Sprintf(`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","bindAddress":"0.0.0.0","clientConnection":{"kubeconfig":%q},
"clusterCIDR":%q,"conntrack":{"maxPerCore":0,"min":0},"hostnameOverride":%q,"mode":"nftables","metricsBindAddress":%q}`, kubeconfig, podRange, peerNode, metricsAddr))
	b.ours = &proxy{name: "umiak", node: ourNode, addr: "10.89.0.2", command: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), ownKubeconfig+"="+kubeconfig, ownNode+"=10.89.0.2")
		return cmd
	}}
	b.peer = &proxy{name: "kube-proxy", node: peerNode, addr: "10.89.0.3", command: func() *exec.Cmd {
		return exec.Command(filepath.Join(bin, "kube-proxy"), "--config="+conf)
	}}
	for _, p := range []*proxy{b.ours, b.peer} {
		if p.space, err = newSpace(); err != nil {
			return b, err
		}
		if err := p.plug(b.api, p.node, p.addr); err != nil {
			return b, err
		}
		if err := b.prepare(ctx, p); err != nil {
			return b, fmt.Errorf("prepare %s: %w", p.name, err)
		}
	}
	return b, nil
}

func (b *bed) write(name, text string) string {
	path := filepath.Join(b.dir, name)
	_ = os.WriteFile(path, []byte(text), 0o600) // reading it reports the error
	return path
}

// start runs a program in a namespace. It dies with this process.
func (b *bed) start(s *space, cmd *exec.Cmd, name string) error {
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.do(func() { err = cmd.Start() })
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

func (b *bed) startAPI(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	sa := b.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	tokens := b.write("tokens.csv", "bench,bench,bench,system:masters\n")
	etcd := exec.Command(filepath.Join(b.bin, "etcd"), "--data-dir="+filepath.Join(b.dir, "etcd"), "--unsafe-no-fsync")
	api := exec.Command(filepath.Join(b.bin, "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--cert-dir="+
		filepath.Join(b.dir, "certs"),
		"--token-auth-file="+tokens, "--authorization-mode=AlwaysAllow", "--service-account-issuer=https://bench",
		"--service-account-key-file="+sa,
		"--service-account-signing-key-file="+sa, "--service-cluster-ip-range=10.96.0.0/12", "--advertise-address="+
			apiAddr,
		"--disable-admission-plugins=ServiceAccount", "--enable-priority-and-fairness=false")
	for _, p := range []struct {
		name string
		cmd  *exec.Cmd
	}{{"etcd", etcd}, {"kube-apiserver", api}} {
		if err := b.start(b.api, p.cmd, p.name); err != nil {
			return err
		}
		b.servers = append(b.servers, p.cmd)
	}
	b.kube, err = kubernetes.NewForConfig(&rest.Config{Host: "https://" + apiAddr + ":6443", BearerToken: "bench",
		QPS:             -1,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		ContentConfig:   rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"},
		Dial: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			b.api.do(func() { c, err = net.DialTimeout(network, addr, 10*time.Second) })
			return c, err
		}})
	if err != nil {
		return err
	}
	return until(ctx, 2*time.Minute, "the API server to be ready", 50*time.Millisecond, func() bool {
		return b.kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() == nil
	})
}

// until asks again and again, as a user's program would.
func until(ctx context.Context, patience time.Duration, what string, every time.Duration, ok func() bool) error {
	for end := time.Now().Add(patience); ; {
		if ok() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %s for %s", patience, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// prepare makes the node, and its probe: a Service whose endpoint is one of two listeners on the node.
func (b *bed) prepare(ctx context.Context, p *proxy) error {
	n, err := b.kube.CoreV1().Nodes().Create(ctx, &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.node}},
		metav1.CreateOptions{})
	if err != nil {
		return err
	}
	n.Status.Addresses = []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: p.addr}}
	if _, err := b.kube.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		return err
	}
	err = until(ctx, time.Minute, "the namespace", 50*time.Millisecond, func() bool {
		_, e := b.kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		return e == nil
	})
	if err != nil {
		return err
	}
	s, err := b.kube.CoreV1().Services(namespace).Create(ctx, newService("probe-"+p.node), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	p.vip = s.Spec.ClusterIP
	if _, err := b.kube.DiscoveryV1().EndpointSlices(namespace).Create(ctx, newSlice("probe-"+p.node, portA, p.addr),
		metav1.CreateOptions{}); err != nil {
		return err
	}
	return p.listen()
}

func newService(name string) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1.ServiceSpec{Ports: []v1.ServicePort{{Name: "p", Port: 80, Protocol: v1.ProtocolTCP}}}}
}

func newSlice(service string, port int32, addrs ...string) *discovery.EndpointSlice {
	yes, tcp, name := true, v1.ProtocolTCP, "p"
	s := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: service,
		Labels:      map[string]string{discovery.LabelServiceName: service},
		Annotations: map[string]string{v1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}}}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{a},
			Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes}})
	}
	return s
}

func endpoint(i, e, generation int) string {
	x := i*2 + e + generation*30000
	return fmt.Sprintf("10.%d.%d.%d", 201+x/62500, x/250%250, 1+x%250)
}

func fillerName(i int) string { return fmt.Sprintf("s%05d", i) }

// fill makes Services until there are n.
func (b *bed) fill(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for ; b.filled < n; b.filled++ {
		i := b.filled
		g.Go(func() error {
			if _, err := b.kube.CoreV1().Services(namespace).Create(ctx, newService(fillerName(i)),
				metav1.CreateOptions{}); err != nil {
				return err
			}
			_, err := b.kube.DiscoveryV1().EndpointSlices(namespace).Create(ctx,
				newSlice(fillerName(i), 8080, endpoint(i, 0, 0), endpoint(i, 1, 0)), metav1.CreateOptions{})
			return err
		})
	}
	return g.Wait()
}

func (b *bed) close() error {
	for _, c := range b.servers {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	return os.RemoveAll(b.dir)
}

// otherBuild is our proxy as this program of another commit has it, in the same place.
func (b *bed) otherBuild(program string) *proxy {
	p := *b.ours
	p.name = "against"
	p.command = func() *exec.Cmd {
		cmd := b.ours.command()
		cmd.Path, cmd.Args[0] = program, program
		return cmd
	}
	return &p
}
