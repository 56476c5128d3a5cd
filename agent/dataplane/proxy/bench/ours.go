package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/dataplane/informercache"
	ours "github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/internal/gctuning"
)

// With these set, the program is the proxy that is measured.
const (
	ownKubeconfig = "UMIAK_PROXYBENCH_KUBECONFIG"
	ownNode       = "UMIAK_PROXYBENCH_NODE" // NAME=ADDRESS
)

func serveOurs(ctx context.Context, kubeconfig, node string) error {
	gctuning.Limit() // as umiak does
	go gctuning.GiveBack(ctx)
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	cfg.QPS = -1
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	factory := informercache.New(client, ourNode)
	p, err := ours.New(ours.Config{NodeName: ourNode, NodeIPs: []netip.Addr{netip.MustParseAddr(node)}, Informers: factory,
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix(podRange)}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", metricsAddr)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	go func() { _ = http.Serve(l, legacyregistry.Handler()) }()
	factory.Start(ctx.Done())
	return p.Run(ctx, func() {})
}
