package upgrades

import (
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// Group is the API group of Upgrades.
	Group = "umiak.io"
	// Version is their API version.
	Version = "v1alpha1"
	// Kind is their kind.
	Kind = "Upgrade"

	// AskedFor is the annotation of a Node with the Request.
	AskedFor = "umiak.io/upgrade"
	// Answered is the annotation of a Node with the Answer to the last Request. It is not removed.
	Answered = "umiak.io/upgrade-answer"
	// Drained is the annotation of a Node that was made unschedulable for its upgrade; its value is the Request's ID.
	Drained = "umiak.io/upgrade-drained"

	// Manifest is the name, for --disable, of the packaged manifest with the schema.
	Manifest = "upgrades"
)

// Resource identifies Upgrades for clients.
var Resource = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "upgrades"}

// Phase is the progress of an Upgrade.
type Phase string

// The phases.
const (
	Upgrading Phase = "Upgrading" // a node is being upgraded
	Waiting   Phase = "Waiting"   // Message says for what
	Paused    Phase = "Paused"    // by its spec
	Failed    Phase = "Failed"    // until the spec changes
	Complete  Phase = "Complete"  // all selected nodes run the version
)

// Upgrade sets the version that nodes of the cluster run. It has no namespace.
type Upgrade struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              Spec   `json:"spec"`
	Status            Status `json:"status,omitempty"`
}

// Spec is the desired state.
type Spec struct {
	// Version is a release, such as v1.37.3+umiak1.
	Version string `json:"version"`
	// Source is the URL of releases, as INSTALL_UMIAK_BASE_URL; empty for the one that the node was installed from.
	Source string `json:"source,omitempty"`
	// NodeSelector selects nodes; nil selects all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Drain evicts the pods of a node first. Without it, they keep running during the upgrade.
	Drain bool `json:"drain,omitempty"`
	// IgnoreDisruptionBudgets drains even if the PodDisruptionBudgets of the pods do not allow a disruption.
	IgnoreDisruptionBudgets bool `json:"ignoreDisruptionBudgets,omitempty"`
	// Paused stops before the next node.
	Paused bool `json:"paused,omitempty"`
	// Attempt is increased to repeat a failed upgrade.
	Attempt int64 `json:"attempt,omitempty"`
}

// Status is the observed state.
type Status struct {
	ObservedGeneration int64  `json:"observedGeneration"`
	Phase              Phase  `json:"phase"`
	Message            string `json:"message"`
	Node               string `json:"node"`  // to which Phase and Message refer; may be empty
	Done               int    `json:"done"`  // nodes that run the version
	Nodes              int    `json:"nodes"` // selected nodes
}

// Request is the request to an agent to upgrade its node.
type Request struct {
	ID      string    `json:"id"` // from Upgrade.ID
	Version string    `json:"version"`
	Source  string    `json:"source,omitempty"`
	Asked   time.Time `json:"asked"`
}

// Answer is the result of a Request.
type Answer struct {
	ID      string    `json:"id"`
	Version string    `json:"version"`         // that the node runs now
	Error   string    `json:"error,omitempty"` // empty on success
	Ended   time.Time `json:"ended"`
}

// ID identifies the request of u to its nodes, so that an answer to another request is not taken for one to this.
func (u *Upgrade) ID() string {
	return fmt.Sprintf("%.8s/%s/%d", u.UID, u.Spec.Version, u.Spec.Attempt)
}

// FromUnstructured decodes an object from the API server.
func FromUnstructured(o *unstructured.Unstructured) (*Upgrade, error) {
	u := &Upgrade{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, u); err != nil {
		return nil, fmt.Errorf("read Upgrade %s: %w", o.GetName(), err)
	}
	return u, nil
}

// ToUnstructured encodes an Upgrade for the API server.
func (u *Upgrade) ToUnstructured() (*unstructured.Unstructured, error) {
	u.TypeMeta = metav1.TypeMeta{APIVersion: Group + "/" + Version, Kind: Kind}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(u)
	if err != nil {
		return nil, fmt.Errorf("encode Upgrade %s: %w", u.Name, err)
	}
	return &unstructured.Unstructured{Object: raw}, nil
}

// maxAnnotation is the most bytes that are read of an annotation.
const maxAnnotation = 16 << 10

// Annotation reads a Request or an Answer. It returns false if there is none or it cannot be read.
func Annotation[T Request | Answer](annotations map[string]string, name string) (v T, ok bool) {
	s := annotations[name]
	if s == "" || len(s) > maxAnnotation || json.Unmarshal([]byte(s), &v) != nil {
		var none T
		return none, false
	}
	return v, true
}
