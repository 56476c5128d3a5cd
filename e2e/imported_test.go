package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/images"
)

const withPolicy = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %[2]q, imagePullPolicy: %[3]s}]
`

// TestImportedImages: on a single server, what was imported runs, whatever the registry does and whatever the kubelet
// remembers of it.
func TestImportedImages(t *testing.T) {
	t.Parallel()
	e := off(t, cluster.Options{Name: "imported", Images: []string{}})
	const settings = `mirrors: {"https://registry.test": {endpoint: ["http://127.0.0.1:5999"], fallback: false}}`
	e.must(e.M.WriteEtc("umiak/registries.yaml", settings))
	// The folder of archives is a link to a disk that is not there yet.
	folder := e.hostPath(cluster.Dirs().Images())
	e.must(errors.Join(os.MkdirAll(filepath.Dir(folder), 0o700), os.Symlink("../disk", folder)))
	e.must(e.Start())
	e.statusHas("Image archives", "the folder is not there")
	e.must(os.Mkdir(e.hostPath(cluster.Dirs().Data, "disk"), 0o700))
	e.must(e.AddImages("one.tar", images.App1))
	e.ready()

	e.sub("without a registry, policy Always takes the import", func(e *env) {
		e.apply(fmt.Sprintf(withPolicy, "always", images.App1, "Always"))
		e.pod(named("always"), isReady)
	})

	// From here on there is a registry that answers, and never says what an image is.
	var hanging atomic.Int32
	release := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		hanging.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})}
	var l net.Listener
	e.must(e.M.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:5999"); return err }))
	go func() { _ = srv.Serve(l) }()
	stop := func() { close(release); _ = srv.Close() }
	e.Cleanup(func() {
		if release != nil {
			stop()
		}
	})
	hang := func(e *env, pod, image string) {
		e.Helper()
		before := hanging.Load()
		e.apply(fmt.Sprintf(withPolicy, pod, image, "Always"))
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			if hanging.Load() == before {
				return fmt.Errorf("%s is not asked for", image)
			}
			return nil
		}))
		intents, err := os.ReadDir(e.hostPath(cluster.Dirs().Kubelet(), "image_manager", "pulling"))
		if err != nil || len(intents) == 0 {
			e.Errorf("the kubelet has no record of a pull: %v, %v", intents, err)
		}
	}
	runs := func(e *env, prefix, image string) {
		e.Helper()
		for _, policy := range []string{"Never", "IfNotPresent"} {
			name := prefix + strings.ToLower(policy)
			e.apply(fmt.Sprintf(withPolicy, name, image, policy))
			e.pod(named(name), isReady)
		}
	}
	e.sub("while a pull hangs, other pods run", func(e *env) {
		// The result of a probe is cached for half a minute; a start asks again.
		e.must(e.Kill())
		e.must(e.Start())
		e.must(e.Cluster.Ready(e.within(2 * patience)))
		hang(e, "hangs1", images.App1)
		runs(e, "meanwhile", images.App1)
	})
	e.sub("also with an image that is imported meanwhile", func(e *env) {
		hang(e, "hangs2", images.App2)
		e.must(e.AddImages("two.tar", images.App2))
		e.must(e.ImagesReady(e.soon()))
		runs(e, "later", images.App2)
	})
	e.sub("after a kill in the middle of a pull", func(e *env) {
		e.must(e.Kill())
		e.must(e.Start())
		e.must(e.Cluster.Ready(e.within(2 * patience)))
		runs(e, "after1", images.App1)
		runs(e, "after2", images.App2)
	})
	e.sub("and when the registry goes away, all of them", func(e *env) {
		stop()
		release = nil
		for _, name := range []string{"hangs1", "hangs2"} {
			e.pod(named(name), isReady)
		}
	})
	e.sub("wrong settings are named", func(e *env) {
		_, err := e.M.Run(e.soon(), "sh", "-c", "echo 'mirrors: {registry.test/app: {}}' >/etc/umiak/registries.yaml")
		e.must(err)
		e.statusHas("the settings before it stay in use",
			"registries.yaml:1: mirrors.registry.test/app: is not a registry")
	})
	log, err := os.ReadFile(e.LogFile())
	e.must(err)
	if strings.Contains(string(log), "only after the next start") {
		t.Error("the kubelet's record of pulls was not found: agent/kubelet/imported.go")
	}
}

// statusHas waits until `umiak status` has some texts in it, whatever it ends with.
func (e *env) statusHas(want ...string) {
	e.Helper()
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := e.Umiak(ctx, "status")
		for _, w := range want {
			if !strings.Contains(out, w) {
				return errors.Join(fmt.Errorf("status does not say %q:\n%s", w, out), err)
			}
		}
		return nil
	}))
}
