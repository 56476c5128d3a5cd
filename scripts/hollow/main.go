// Command hollow is many nodes in one process for `scripts/bench hollow`: upstream's kubemark, kubelets that are real but for
// what is below them, which runs no containers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	apitest "k8s.io/cri-api/pkg/apis/testing"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubemark"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hollow:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("hollow", flag.ContinueOnError)
	kubeconfig := f.String("kubeconfig", "", "the administrator's, of the cluster that gets the nodes")
	n := f.Int("nodes", 500, "how many")
	if err := f.Parse(args); err != nil {
		return err
	}
	for i := range *n {
		if err := start(ctx, *kubeconfig, fmt.Sprintf("hollow-%d", i)); err != nil {
			return err
		}
		select { // they do not all register in one moment
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	<-ctx.Done()
	return nil
}

// start makes a node and returns when its kubelet runs.
func start(ctx context.Context, kubeconfig, name string) error {
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	rc.UserAgent, rc.QPS = "hollow-"+name, -1 // a connection for each, as nodes have
	rc.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client of %s: %w", name, err)
	}
	flags, conf := kubemark.GetHollowKubeletConfig(&kubemark.HollowKubeletOptions{NodeName: name, MaxPods: 110})
	conf.EnableServer = false
	conf.MaxOpenFiles = 1_000_000 // it is the process'
	k := kubemark.NewHollowKubelet(flags, conf, client, client, &cadvisortest.Fake{NodeName: name},
		apitest.NewFakeImageService(), apitest.NewFakeRuntimeService(), cm.NewStubContainerManager())
	err = kubeletapp.RunKubelet(ctx, &options.KubeletServer{KubeletFlags: *k.KubeletFlags, KubeletConfiguration: *k.KubeletConfiguration}, k.KubeletDeps)
	if err != nil {
		return fmt.Errorf("start kubelet of %s: %w", name, err)
	}
	return nil
}
