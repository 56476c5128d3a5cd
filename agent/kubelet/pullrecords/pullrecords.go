package pullrecords

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"
)

// Image is an image identified by its content.
type Image struct {
	ID       string   // digest of its configuration
	Imported []string // the full names under which it was imported
	Others   []string // its other names: pulled, tagged manually, or the ID itself
}

// Recorder is the part of the kubelet that records pulls: pullmanager.ImagePullManager.
type Recorder interface {
	RecordImagePulled(ctx context.Context, image, imageRef string, credentials *kubeletconfig.ImagePullCredentials)
}

// Records are the kubelet's pull records on disk.
type Records struct {
	pulled  pullmanager.PullRecordsAccessor
	pulling string // folder of started pulls
	done    string // folder of pulled images
}

// Open opens the pull records in the kubelet's root directory.
func Open(ctx context.Context, kubeletDir string) (*Records, error) {
	pulled, err := pullmanager.NewFSPullRecordsAccessor(klog.FromContext(ctx), kubeletDir)
	if err != nil {
		return nil, fmt.Errorf("open the kubelet's pull records: %w", err)
	}
	dir := filepath.Join(kubeletDir, "image_manager")
	return &Records{pulled, filepath.Join(dir, "pulling"), filepath.Join(dir, "pulled")}, nil
}

// Prepare writes the records of imported images, and removes the records of interrupted pulls, except for images that
// are present without having been imported. No kubelet may be running. images must list all images of the node.
func (r *Records) Prepare(ctx context.Context, images []Image) error {
	var errs []error
	unknown := map[string]bool{} // names of images that were not imported
	for _, img := range images {
		if len(img.Imported) > 0 {
			errs = append(errs, r.write(ctx, img))
			continue
		}
		for _, n := range img.Others {
			unknown[n] = true
		}
	}
	return errors.Join(append(errs, r.removeIntents(unknown))...)
}

// write adds access for all pods to an image's record, and creates the record if it is missing.
func (r *Records) write(ctx context.Context, img Image) error {
	rec, open := r.open(img)
	if len(open) == 0 {
		return nil
	}
	rec = rec.DeepCopy()
	if rec.CredentialMapping == nil {
		rec.CredentialMapping = map[string]kubeletconfig.ImagePullCredentials{}
	}
	for _, repository := range open {
		rec.CredentialMapping[repository] = kubeletconfig.ImagePullCredentials{NodePodsAccessible: true}
	}
	rec.LastUpdatedTime = metav1.Now()
	if err := r.pulled.WriteImagePulledRecord(klog.FromContext(ctx), rec); err != nil {
		return fmt.Errorf("write the kubelet's record of %s: %w", img.ID, err)
	}
	return nil
}

// Grant makes a running kubelet record that all pods may use an imported image.
func (r *Records) Grant(ctx context.Context, kubelet Recorder, img Image) {
	if len(img.Imported) == 0 {
		return
	}
	_, open := r.open(img)
	for _, repository := range open {
		// With the digest: a tag would end the record of a pull of that tag in progress.
		name := repository + "@" + img.ID
		if repository == byID {
			name = img.ID
		}
		kubelet.RecordImagePulled(ctx, name, img.ID, &kubeletconfig.ImagePullCredentials{NodePodsAccessible: true})
	}
}

// open returns an image's record, and the repositories in it to which all pods must get access. These include the
// image's other names, which would be accessible without a record, but not names that were pulled with credentials.
func (r *Records) open(img Image) (*kubeletconfig.ImagePulledRecord, []string) {
	rec, _, err := r.pulled.GetImagePulledRecord(img.ID)
	if err != nil || rec == nil {
		// An unreadable record, after a power failure, grants nothing: replace it.
		rec = &kubeletconfig.ImagePulledRecord{ImageRef: img.ID}
	}
	imported := repositories(img.Imported)
	var out []string
	for _, repository := range append(repositories(img.Others), append(imported, byID)...) {
		has := rec.CredentialMapping[repository]
		withCredentials := len(has.KubernetesSecrets)+len(has.KubernetesServiceAccounts) > 0
		if !has.NodePodsAccessible && (!withCredentials || slices.Contains(imported, repository)) {
			out = append(out, repository)
		}
	}
	slices.Sort(out)
	return rec, slices.Compact(out)
}

// byID is the kubelet's repository name for images that a pod references by ID.
const byID = "sha256"

// repositories returns the repositories of names in every form in which a pod may write them: the kubelet stores
// records under the name in the pod's spec.
func repositories(names []string) []string {
	var out []string
	for _, name := range names {
		if strings.HasPrefix(name, byID+":") {
			continue
		}
		n, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		domain, path := reference.Domain(n), reference.Path(n)
		out = append(out, domain+"/"+path)
		if domain != "docker.io" {
			continue
		}
		out = append(out, path, "index.docker.io/"+path)
		if short, ok := strings.CutPrefix(path, "library/"); ok {
			out = append(out, short, "docker.io/"+short, "index.docker.io/"+short)
		}
	}
	return out
}

// removeIntents removes the records of started pulls, except for images in unknown, whose credentials nobody knows.
func (r *Records) removeIntents(unknown map[string]bool) error {
	return r.intents(func(path, image string) error {
		if unknown[image] {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// intents calls each for every record of a started pull, with the full name of the image, "" if the record is
// unreadable after a power failure.
func (r *Records) intents(each func(path, image string) error) error {
	entries, err := os.ReadDir(r.pulling)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(r.pulling, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var intent struct {
			Image string `json:"image"`
		}
		image := ""
		if json.Unmarshal(text, &intent) == nil && intent.Image != "" {
			if n, err := reference.ParseDockerRef(intent.Image); err == nil {
				image = n.String()
			}
		}
		errs = append(errs, each(path, image))
	}
	return errors.Join(errs...)
}
