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

// Image is an image by its content.
type Image struct {
	ID       string   // the digest of its configuration
	Imported []string // the full names under which it was imported
	Others   []string // its other names: pulled, tagged by hand, or the ID itself
}

// Recorder is the part of the kubelet that records pulls: pullmanager.ImagePullManager.
type Recorder interface {
	RecordImagePulled(ctx context.Context, image, imageRef string, credentials *kubeletconfig.ImagePullCredentials)
}

// Records are the kubelet's records of pulls on the disk.
type Records struct {
	pulled  pullmanager.PullRecordsAccessor
	pulling string // the folder of pulls that have begun
	done    string // the folder of images that were pulled
}

// Open opens the records in a kubelet's directory.
func Open(ctx context.Context, kubeletDir string) (*Records, error) {
	pulled, err := pullmanager.NewFSPullRecordsAccessor(klog.FromContext(ctx), kubeletDir)
	if err != nil {
		return nil, fmt.Errorf("open the kubelet's records of pulls: %w", err)
	}
	dir := filepath.Join(kubeletDir, "image_manager")
	return &Records{pulled, filepath.Join(dir, "pulling"), filepath.Join(dir, "pulled")}, nil
}

// Prepare writes the records of imported images, and removes what is left of pulls that were broken off and brought nothing but what was
// imported anyway. No kubelet may be running. images are all that the node has.
func (r *Records) Prepare(ctx context.Context, images []Image) error {
	var errs []error
	unknown := map[string]bool{} // names of images that are there and were not imported
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

// write adds to an image's record, or makes one, in which its repositories are open to all pods.
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

// Grant has a running kubelet record that all its pods may use an imported image.
func (r *Records) Grant(ctx context.Context, kubelet Recorder, img Image) {
	if len(img.Imported) == 0 {
		return
	}
	_, open := r.open(img)
	for _, repository := range open {
		// With the digest, so that it is not taken for the end of a pull of a tag that is under way.
		name := repository + "@" + img.ID
		if repository == byID {
			name = img.ID
		}
		kubelet.RecordImagePulled(ctx, name, img.ID, &kubeletconfig.ImagePullCredentials{NodePodsAccessible: true})
	}
}

// open returns an image's record as it is, and the repositories that are to be opened in it. Other names than the imported ones are opened
// too, since without a record they would be open, but not one that was pulled with credentials.
func (r *Records) open(img Image) (*kubeletconfig.ImagePulledRecord, []string) {
	rec, _, err := r.pulled.GetImagePulledRecord(img.ID)
	if err != nil || rec == nil {
		// One that cannot be read, after a power cut, allows nothing and is replaced.
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

// byID is what the kubelet takes for the repository of an image that a pod names by its ID alone.
const byID = "sha256"

// repositories are those of names in every form in which a pod may write them: the kubelet keeps records under the name that it reads in
// the pod.
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

// removeIntents removes the records of pulls that have begun, but for those of images that are there and were not imported: of these
// nobody knows with whose credentials they came.
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

// intents calls each for every record of a pull that has begun, with the full name of the image; it is empty where the record cannot be
// read, after a power cut.
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
