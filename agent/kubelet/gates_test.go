package kubelet

import (
	"strconv"
	"testing"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/features"
)

// TestGatesAreSetBeforeTheyAreRead: try asks for this one before upstream's code sets it.
func TestGatesAreSetBeforeTheyAreRead(t *testing.T) {
	gate := features.KubeletInUserNamespace
	was := utilfeature.DefaultFeatureGate.Enabled(gate)
	defer func() {
		if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{string(gate): was}); err != nil {
			t.Error(err)
		}
	}()
	k := New(config("feature-gates=" + string(gate) + "=" + strconv.FormatBool(!was)))
	if err := k.configure(); err != nil {
		t.Fatal(err)
	}
	if err := k.setGates(); err != nil {
		t.Fatal(err)
	}
	if utilfeature.DefaultFeatureGate.Enabled(gate) == was {
		t.Errorf("%s is still %v", gate, was)
	}
}
