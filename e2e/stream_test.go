package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

// exec runs a command in a container, as kubectl does: by WebSocket.
func (e *env) exec(ctx context.Context, pod, container string, argv ...string) (string, error) {
	return e.execInput(ctx, nil, pod, container, argv...)
}

func (e *env) execInput(ctx context.Context, stdin io.Reader, pod, container string, argv ...string) (string, error) {
	cfg, err := e.Streaming()
	if err != nil {
		return "", err
	}
	url := e.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(e.ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: argv, Stdin: stdin != nil, Stdout: true,
			Stderr: true}, scheme.ParameterCodec).URL()
	url.Host = strings.TrimPrefix(cfg.Host, "https://")
	x, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, url.String())
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	err = x.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	if err != nil {
		err = fmt.Errorf("exec %s in %s: %w: %s", strings.Join(argv, " "), pod, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

// forward opens a port of a pod here and returns the local address; it is closed with the context.
func (e *env) forward(ctx context.Context, pod string, port int) (string, error) {
	cfg, err := e.Streaming()
	if err != nil {
		return "", err
	}
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return "", err
	}
	url := k.CoreV1().RESTClient().Post().Resource("pods").Namespace(e.ns).Name(pod).SubResource("portforward").URL()
	tr, up, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return "", err
	}
	ready := make(chan struct{})
	var errOut bytes.Buffer
	f, err := portforward.New(spdy.NewDialer(up, &http.Client{Transport: tr}, http.MethodPost, url),
		[]string{fmt.Sprintf("0:%d", port)}, ctx.Done(), ready, io.Discard, &errOut)
	if err != nil {
		return "", err
	}
	failed := make(chan error, 1)
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return "", fmt.Errorf("port-forward: %w: %s", err, errOut.String())
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), nil
}
