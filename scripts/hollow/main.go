// Command hollow is many nodes in one process for `scripts/bench hollow`: upstream's kubemark, kubelets that are real
// but for what is below them, which runs no containers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/blang/semver/v4"
	"github.com/prometheus/client_golang/prometheus"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	apitest "k8s.io/cri-api/pkg/apis/testing"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	cadvisortest "k8s.io/kubernetes/pkg/kubelet/cadvisor/testing"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/metrics/collectors"
	"k8s.io/kubernetes/pkg/kubemark"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
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
	// Registers metrics as well, before the kubelet is started.
	if err := utilfeature.DefaultMutableFeatureGate.Set("PodCertificateRequest=false"); err != nil {
		return err
	}
	for i := range *n {
		if err := start(ctx, *kubeconfig, fmt.Sprintf("hollow-%d", i)); err != nil {
			return err
		}
		forgetMetrics(ctx)
		select { // they do not all register in one moment
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	<-ctx.Done()
	return nil
}

// forgetMetrics takes what the kubelet that was started last registers, as soon as it does, out of the process'
// registries: a kubelet takes it for granted that it is the process' only one, and the next one's would be an error
// that ends it.
func forgetMetrics(ctx context.Context) {
	for _, c := range []metrics.StableCollector{collectors.NewVolumeStatsCollector(nil),
		collectors.NewLogMetricsCollector(nil)} {
		c.Create(&semver.Version{Major: 1}, c)
		for _, r := range []prometheus.Registerer{legacyregistry.Registerer(), prometheus.DefaultRegisterer} {
			for !r.Unregister(c) && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
	}
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
	runtime := apitest.NewFakeRuntimeService()
	runtime.FakeStatus = &criv1.RuntimeStatus{Conditions: []*criv1.RuntimeCondition{
		{Type: criv1.RuntimeReady, Status: true}, {Type: criv1.NetworkReady, Status: true},
	}}
	k := kubemark.NewHollowKubelet(flags, conf, client, client, &cadvisortest.Fake{NodeName: name},
		apitest.NewFakeImageService(), runtime, cm.NewStubContainerManager())
	// CSI's plugin has one node a process.
	k.KubeletDeps.VolumePlugins = slices.DeleteFunc(k.KubeletDeps.VolumePlugins,
		func(p volume.VolumePlugin) bool { return p.GetPluginName() == csi.CSIPluginName })
	err = kubeletapp.RunKubelet(ctx, &options.KubeletServer{KubeletFlags: *k.KubeletFlags,
		KubeletConfiguration: *k.KubeletConfiguration}, k.KubeletDeps)
	if err != nil {
		return fmt.Errorf("start kubelet of %s: %w", name, err)
	}
	return nil
}
