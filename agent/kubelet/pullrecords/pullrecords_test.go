package pullrecords_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/umiak-io/umiak/agent/kubelet/pullrecords"
)

var (
	publicID  = "sha256:" + strings.Repeat("a", 64)
	privateID = "sha256:" + strings.Repeat("b", 64)
	app       = pullrecords.Image{ID: publicID, Imported: []string{"docker.io/library/app:1",
		"docker.io/library/app:2"}, Others: []string{publicID}}
	private = pullrecords.Image{ID: privateID, Others: []string{"registry.test/private:1", privateID}}
)

// store is what the kubelet's runtime says that there is.
type store struct {
	kubecontainer.ImageService
	images []pullrecords.Image
}

func (s store) ListImages(context.Context) ([]kubecontainer.Image, error) {
	var out []kubecontainer.Image
	for _, i := range s.images {
		out = append(out, kubecontainer.Image{ID: i.ID, RepoTags: append(i.Imported, i.Others...)})
	}
	return out, nil
}

// kubelet is the part of a kubelet that decides about pulls, as it is after a start with a directory.
func kubelet(t *testing.T, dir string, images ...pullrecords.Image) *pullmanager.PullManager {
	t.Helper()
	ctx := t.Context()
	files, err := pullmanager.NewFSPullRecordsAccessor(klog.FromContext(ctx), dir)
	if err != nil {
		t.Fatal(err)
	}
	cached := pullmanager.NewCachedPullRecordsAccessor(klog.FromContext(ctx), files, 100, 100, 4)
	m, err := pullmanager.NewImagePullManager(ctx, cached, pullmanager.NeverVerifyPreloadedPullPolicy(),
		store{images: images}, 4)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// usable says whether a pod without credentials may use an image that is there.
func usable(t *testing.T, k *pullmanager.PullManager, name, id string) bool {
	t.Helper()
	pull, err := k.MustAttemptImagePull(t.Context(), name, id,
		func() ([]kubeletconfig.ImagePullSecret, *kubeletconfig.ImagePullServiceAccount, error) {
			return nil, nil, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	return !pull
}

func prepare(t *testing.T, dir string, images ...pullrecords.Image) *pullrecords.Records {
	t.Helper()
	r, err := pullrecords.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Prepare(t.Context(), images); err != nil {
		t.Fatal(err)
	}
	return r
}

var spellings = []string{"app:1", "app:2", "library/app:1", "docker.io/app:1", "docker.io/library/app:1",
	"index.docker.io/library/app:1", publicID}

func secret(name string) *kubeletconfig.ImagePullCredentials {
	return &kubeletconfig.ImagePullCredentials{KubernetesSecrets: []kubeletconfig.ImagePullSecret{{UID: name,
		Namespace: "a", Name: name, CredentialHash: name}}}
}

// A kubelet that was killed in the middle of a pull leaves its intent. The next one makes a record of it that lets
// nobody in.
func TestAnImportedImageSurvivesABrokenOffPull(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, dir string){
		"an intent": func(t *testing.T, dir string) {
			if err := kubelet(t, dir, app).RecordPullIntent(klog.FromContext(t.Context()),
				"docker.io/library/app:1"); err != nil {
				t.Fatal(err)
			}
		},
		"an intent for a short name": func(t *testing.T, dir string) {
			if err := kubelet(t, dir, app).RecordPullIntent(klog.FromContext(t.Context()), "app:1"); err != nil {
				t.Fatal(err)
			}
		},
		"a record of an earlier version": func(t *testing.T, dir string) {
			if err := kubelet(t, dir, app).RecordPullIntent(klog.FromContext(t.Context()),
				"docker.io/library/app:1"); err != nil {
				t.Fatal(err)
			}
			if usable(t, kubelet(t, dir, app), "app:2", publicID) {
				t.Fatal("the kubelet itself does what this package is for")
			}
		},
		"a record with credentials": func(t *testing.T, dir string) {
			kubelet(t, dir, app).RecordImagePulled(t.Context(), "docker.io/library/app:1", publicID, secret("one"))
		},
		"files that a power cut emptied": func(t *testing.T, dir string) {
			k := kubelet(t, dir, app)
			if err := k.RecordPullIntent(klog.FromContext(t.Context()), "app:1"); err != nil {
				t.Fatal(err)
			}
			k.RecordImagePulled(t.Context(), "docker.io/library/app:1", publicID, secret("one"))
			if err := k.RecordPullIntent(klog.FromContext(t.Context()), "app:2"); err != nil {
				t.Fatal(err)
			}
			all, _ := filepath.Glob(filepath.Join(dir, "image_manager", "*", "sha256-*"))
			if len(all) < 2 {
				t.Fatalf("records: %v", all)
			}
			for _, f := range all {
				if err := os.Truncate(f, 0); err != nil {
					t.Fatal(err)
				}
			}
		},
		"nothing": func(*testing.T, string) {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			leave(t, dir)
			prepare(t, dir, app)
			k := kubelet(t, dir, app)
			for _, s := range spellings {
				if !usable(t, k, s, publicID) {
					t.Errorf("%s is not usable", s)
				}
			}
			// Also while a pull hangs.
			for _, s := range spellings {
				if err := k.RecordPullIntent(klog.FromContext(t.Context()), s); err != nil {
					t.Fatal(err)
				}
				if !usable(t, k, s, publicID) {
					t.Errorf("%s is not usable while it is pulled", s)
				}
			}
			// And after the next kill.
			prepare(t, dir, app)
			if k = kubelet(t, dir, app); !usable(t, k, "app:1", publicID) {
				t.Error("it is not usable after the second start")
			}
		})
	}
}

func TestAnImportWhileTheKubeletRuns(t *testing.T) {
	dir := t.TempDir()
	records := prepare(t, dir)
	k := kubelet(t, dir)
	if err := k.RecordPullIntent(klog.FromContext(t.Context()), "app:1"); err != nil {
		t.Fatal(err)
	}
	if usable(t, k, "app:1", publicID) {
		t.Fatal("the kubelet itself does what this package is for")
	}
	records.Grant(t.Context(), k, app)
	for _, s := range spellings {
		if !usable(t, k, s, publicID) {
			t.Errorf("%s is not usable", s)
		}
	}
	// The pull goes on, and brings something newer with a tenant's credentials. That stays the tenant's.
	k.RecordImagePulled(t.Context(), "app:1", privateID, secret("one"))
	if usable(t, k, "app:1", privateID) {
		t.Error("what was pulled with credentials is open")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "image_manager", "pulling", "*")); len(left) > 0 {
		t.Errorf("intents: %v", left)
	}
}

// TestTheKubeletDropsRecords: on a disk that is nearly full the kubelet drops the records of all images that it may
// not remove.
func TestTheKubeletDropsRecords(t *testing.T) {
	drop := func(k *pullmanager.PullManager) { k.PruneUnknownRecords(t.Context(), nil, time.Now().Add(time.Minute)) }
	begin := func(k *pullmanager.PullManager) {
		if err := k.RecordPullIntent(klog.FromContext(t.Context()), "app:1"); err != nil {
			t.Error(err)
		}
	}
	for name, happens := range map[string]func(*pullmanager.PullManager){
		"before a pull": func(k *pullmanager.PullManager) { drop(k); begin(k) },
		"during a pull": func(k *pullmanager.PullManager) { begin(k); drop(k) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			records := prepare(t, dir, app)
			k := kubelet(t, dir, app)
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer stop()
			wg.Go(func() {
				err := records.WatchPulls(ctx, func(ctx context.Context, names []string) {
					if !app.Named(names) || private.Named(names) {
						t.Errorf("names: %v", names)
					}
					records.Grant(ctx, k, app)
				})
				if err != nil {
					t.Error(err)
				}
			})
			happens(k)
			for deadline := time.Now().Add(10 * time.Second); !usable(t, k, "app:1", publicID); {
				if time.Now().After(deadline) {
					t.Fatal("the imported image is not usable while it is pulled")
				}
				runtime.Gosched()
			}
		})
	}
}

func TestPulledImagesStayWithTheirCredentials(t *testing.T) {
	dir := t.TempDir()
	k := kubelet(t, dir, private)
	k.RecordImagePulled(t.Context(), "registry.test/private:1", privateID, secret("one"))
	// The same content, imported under another name.
	both := private
	both.Imported = []string{"docker.io/library/public:1"}
	// And pulls that broke off: what is not there, and what is.
	other := pullrecords.Image{ID: "sha256:" + strings.Repeat("c", 64), Others: []string{"registry.test/other:1"}}
	for _, name := range []string{"registry.test/none:1", "registry.test/other:1"} {
		if err := k.RecordPullIntent(klog.FromContext(t.Context()), name); err != nil {
			t.Fatal(err)
		}
	}
	records := prepare(t, dir, both, app, other)
	k = kubelet(t, dir, both, app, other)
	records.Grant(t.Context(), k, both)
	for name, c := range map[string]struct {
		id   string
		want bool
	}{
		"registry.test/private:1": {privateID, false},
		"public:1":                {privateID, true},
		"registry.test/other:1":   {other.ID, false},
		// imported later, as if it had never been pulled
		"registry.test/none:1": {"sha256:" + strings.Repeat("d", 64), true},
	} {
		if got := usable(t, k, name, c.id); got != c.want {
			t.Errorf("%s without credentials: %v", name, got)
		}
	}
	pull, err := k.MustAttemptImagePull(t.Context(), "registry.test/private:1", privateID,
		func() ([]kubeletconfig.ImagePullSecret, *kubeletconfig.ImagePullServiceAccount, error) {
			return secret("one").KubernetesSecrets, nil, nil
		})
	if err != nil || pull {
		t.Errorf("with its credentials: %v, %v", pull, err)
	}
}

func TestPrepareSaysWhatItCannotDo(t *testing.T) {
	dir := t.TempDir()
	r, err := pullrecords.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "image_manager", "pulling")); err != nil {
		t.Fatal(err)
	}
	if err := r.Prepare(t.Context(), []pullrecords.Image{app}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
