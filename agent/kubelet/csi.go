package kubelet

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
)

// csiKeeper keeps the CSI plugin's package variables (its node info manager and its registration handler)
// those of the kubelet.
//
// Upstream's csi plugin takes for granted that a process has one of it. Where the controller manager runs in
// the same process, its attach-detach and expand controllers initialise the plugin too, and the last one
// wins: CSINode is then written with an empty node name, which fails, and the kubelet stays NotReady and in
// the end wants to end the process. So the kubelet's plugin is initialised once more whenever such
// controllers have been made.
//
// It is a volume plugin that supports no volume, because a plugin is told the host that csi.Init needs.
type csiKeeper struct {
	csi volume.VolumePlugin

	mu    sync.Mutex
	host  volume.VolumeHost // nil until the kubelet has initialised its plugins
	again bool              // others may have initialised it while the kubelet did
}

var _ volume.VolumePlugin = (*csiKeeper)(nil)

// keepCSI returns a keeper for the CSI plugin among plugins.
func keepCSI(plugins []volume.VolumePlugin) (*csiKeeper, error) {
	for _, p := range plugins {
		if p.GetPluginName() == csi.CSIPluginName {
			return &csiKeeper{csi: p}, nil
		}
	}
	return nil, fmt.Errorf("the kubelet has no volume plugin %s", csi.CSIPluginName)
}

// Init comes after that of the CSI plugin, which stands before it in the kubelet's list.
func (k *csiKeeper) Init(host volume.VolumeHost) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.host = host
	if !k.again {
		return nil
	}
	return k.csi.Init(host)
}

// reclaim makes the variables the kubelet's again.
func (k *csiKeeper) reclaim() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = true
	if k.host == nil {
		return nil // Init will do it
	}
	if err := k.csi.Init(k.host); err != nil {
		return fmt.Errorf("initialise the CSI plugin again: %w", err)
	}
	return nil
}

// csiPause is how long a CSINode that cannot be written is left alone.
const csiPause = time.Minute

// Forgive deals with a wish of the kubelet to end the process that has another cure: when the CSINode of a new node could
// not be written for two minutes, as while a webhook refuses it, upstream wants to be started again to try once more. It
// reports whether it does.
func (k *Kubelet) Forgive(reason error) bool {
	keeper := k.csi.Load()
	if keeper == nil || !strings.Contains(reason.Error(), "initialize CSINode") {
		return false
	}
	k.cfg.Log.Warn("the CSINode cannot be written, trying again; the node is not ready before", "error", reason, "in", csiPause)
	time.AfterFunc(csiPause, func() {
		if err := keeper.reclaim(); err != nil {
			k.cfg.Log.Error("cannot initialise the CSI plugin again", "error", err)
		}
	})
	return true
}

var errNoVolumes = errors.New("this plugin has no volumes")

func (*csiKeeper) GetPluginName() string                                    { return "umiak.io/csi-keeper" }
func (*csiKeeper) GetVolumeName(*volume.Spec) (string, error)               { return "", errNoVolumes }
func (*csiKeeper) CanSupport(*volume.Spec) bool                             { return false }
func (*csiKeeper) RequiresRemount(*volume.Spec) bool                        { return false }
func (*csiKeeper) SupportsMountOption() bool                                { return false }
func (*csiKeeper) SupportsSELinuxContextMount(*volume.Spec) (bool, error)   { return false, nil }
func (*csiKeeper) NewMounter(*volume.Spec, *v1.Pod) (volume.Mounter, error) { return nil, errNoVolumes }
func (*csiKeeper) NewUnmounter(string, types.UID) (volume.Unmounter, error) { return nil, errNoVolumes }
func (*csiKeeper) ConstructVolumeSpec(string, string) (volume.ReconstructedVolume, error) {
	return volume.ReconstructedVolume{}, errNoVolumes
}
