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
	// Group is that of Upgrades.
	Group = "umiak.io"
	// Version is the one in which they are served.
	Version = "v1alpha1"
	// Kind is what they are called.
	Kind = "Upgrade"

	// AskedFor is the annotation of a Node with a Request in it.
	AskedFor = "umiak.io/upgrade"
	// Answered is the annotation of a Node with the Answer to the last Request. It stays.
	Answered = "umiak.io/upgrade-answer"
	// Drained is the annotation of a Node that was made unschedulable for its upgrade; its value is the Request's ID.
	Drained = "umiak.io/upgrade-drained"

	// Manifest is the name of the packaged manifest that has the schema, for --disable.
	Manifest = "upgrades"
)

// Resource is by what clients find Upgrades.
var Resource = schema.GroupVersionResource{Group: Group, Version: Version, Resource: "upgrades"}

// Phase is how far an Upgrade is.
type Phase string

// The phases.
const (
	Upgrading Phase = "Upgrading" // a node is being upgraded
	Waiting   Phase = "Waiting"   // for what the message says
	Paused    Phase = "Paused"    // because its spec says so
	Failed    Phase = "Failed"    // and stays so until the spec changes
	Complete  Phase = "Complete"  // all selected nodes run the version
)

// Upgrade says which version the nodes of a cluster are to run. There is one namespace for all of them: none.
type Upgrade struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              Spec   `json:"spec"`
	Status            Status `json:"status,omitempty"`
}

// Spec is what is wanted.
type Spec struct {
	// Version is a release, such as v1.37.3+umiak1.
	Version string `json:"version"`
	// Source is where nodes find releases, if it is not where they were installed from: INSTALL_UMIAK_BASE_URL.
	Source string `json:"source,omitempty"`
	// NodeSelector chooses nodes; nil is all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Drain moves the pods of a node away first. Without it they run on through the upgrade.
	Drain bool `json:"drain,omitempty"`
	// IgnoreDisruptionBudgets does not wait until the PodDisruptionBudgets of a node's pods allow a disruption.
	IgnoreDisruptionBudgets bool `json:"ignoreDisruptionBudgets,omitempty"`
	// Paused begins with no further node.
	Paused bool `json:"paused,omitempty"`
	// Attempt is raised to try again what has failed.
	Attempt int64 `json:"attempt,omitempty"`
}

// Status is how it stands.
type Status struct {
	ObservedGeneration int64  `json:"observedGeneration"`
	Phase              Phase  `json:"phase"`
	Message            string `json:"message"`
	Node               string `json:"node"` // the one that Phase and Message are about, if any
	Done               int    `json:"done"`
	Nodes              int    `json:"nodes"`
}

// Request asks an agent to upgrade its node.
type Request struct {
	ID      string    `json:"id"` // of an Upgrade, a version and an attempt
	Version string    `json:"version"`
	Source  string    `json:"source,omitempty"`
	Asked   time.Time `json:"asked"`
}

// Answer is what became of it.
type Answer struct {
	ID      string    `json:"id"`
	Version string    `json:"version"` // that runs now
	Error   string    `json:"error,omitempty"`
	Ended   time.Time `json:"ended"`
}

// ID names what u asks of its nodes, so that an answer to something else is not taken for one.
func (u *Upgrade) ID() string {
	return fmt.Sprintf("%.8s/%s/%d", u.UID, u.Spec.Version, u.Spec.Attempt)
}

// FromUnstructured reads an object of the API server.
func FromUnstructured(o *unstructured.Unstructured) (*Upgrade, error) {
	u := &Upgrade{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, u); err != nil {
		return nil, fmt.Errorf("read Upgrade %s: %w", o.GetName(), err)
	}
	return u, nil
}

// ToUnstructured makes an object for the API server of it.
func (u *Upgrade) ToUnstructured() (*unstructured.Unstructured, error) {
	u.TypeMeta = metav1.TypeMeta{APIVersion: Group + "/" + Version, Kind: Kind}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(u)
	if err != nil {
		return nil, fmt.Errorf("encode Upgrade %s: %w", u.Name, err)
	}
	return &unstructured.Unstructured{Object: raw}, nil
}

const maxAnnotation = 16 << 10

// Annotation reads a Request or an Answer. What is not there or cannot be read is false.
func Annotation[T Request | Answer](annotations map[string]string, name string) (v T, ok bool) {
	s := annotations[name]
	if s == "" || len(s) > maxAnnotation || json.Unmarshal([]byte(s), &v) != nil {
		var none T
		return none, false
	}
	return v, true
}
