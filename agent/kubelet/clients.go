package kubelet

import (
	"context"
	"fmt"
	"net"
	"time"

	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/connrotation"
	upstream "k8s.io/kubernetes/pkg/kubelet"
)

// clients creates the kubelet's clients as upstream does, with one addition: stop closes their connections and prevents
// new ones. Much of the kubelet does not stop with its context, and its watches would delay the API server's shutdown.
func (k *Kubelet) clients(ctx context.Context, deps *upstream.Dependencies) (stop func(), err error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", k.server.KubeConfig)
	if err != nil {
		return nil, fmt.Errorf("read the node's kubeconfig: %w", err)
	}
	plain := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	dialer := connrotation.NewDialer(func(dial context.Context, network, addr string) (net.Conn, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, fmt.Errorf("the kubelet has been stopped: %w", err)
		}
		return plain.DialContext(dial, network, addr)
	})
	cfg.Dial = dialer.DialContext
	cfg.UserAgent = "kubelet"
	cfg.ContentType = k.server.ContentType
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	cfg.QPS, cfg.Burst = float32(k.server.KubeAPIQPS), int(k.server.KubeAPIBurst)
	// The three clients share one connection.
	conn, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("create kubelet client: %w", err)
	}
	if deps.KubeClient, err = kubernetes.NewForConfigAndClient(cfg, conn); err != nil {
		return nil, fmt.Errorf("create kubelet client: %w", err)
	}
	events := rest.CopyConfig(cfg)
	events.QPS, events.Burst = float32(k.server.EventRecordQPS), int(k.server.EventBurst)
	if k.server.EventRecordQPS == 0 {
		events.QPS = -1
	}
	if deps.EventClient, err = corev1.NewForConfigAndClient(events, conn); err != nil {
		return nil, fmt.Errorf("create kubelet event client: %w", err)
	}
	heartbeat := rest.CopyConfig(cfg)
	heartbeat.QPS = -1
	timed := *conn
	timed.Timeout = min(k.server.NodeStatusUpdateFrequency.Duration,
		time.Duration(k.server.NodeLeaseDurationSeconds)*time.Second)
	if deps.HeartbeatClient, err = kubernetes.NewForConfigAndClient(heartbeat, &timed); err != nil {
		return nil, fmt.Errorf("create kubelet heartbeat client: %w", err)
	}
	if hidden := k.cfg.HiddenAddresses; len(hidden) > 0 {
		deps.KubeClient, deps.HeartbeatClient = &hiding{deps.KubeClient, hidden},
			&hiding{deps.HeartbeatClient, hidden} // pointers, because upstream compares them with nil
	}
	// Close a dead connection after failed heartbeats.
	deps.OnHeartbeatFailure = dialer.CloseAll
	return dialer.CloseAll, nil
}
