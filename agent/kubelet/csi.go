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

// csiGuard restores the package variables of the CSI plugin (node info manager and registration handler) to the
// kubelet's.
//
// Upstream's CSI plugin assumes that a process initializes it once. If the controller manager runs in the same process,
// its attach-detach and expand controllers initialize the plugin too, and the last one wins: CSINode is then written
// with an empty node name, which fails, and the kubelet stays NotReady and finally tries to end the process. So the
// guard initializes the kubelet's plugin again after such controllers are created.
//
// It is a volume plugin that supports no volume, because only plugins get the host that csi.Init needs.
type csiGuard struct {
	csi volume.VolumePlugin

	mu    sync.Mutex
	host  volume.VolumeHost // nil until the kubelet has initialised its plugins
	again bool              // controllers may have initialized the plugin meanwhile
}

var _ volume.VolumePlugin = (*csiGuard)(nil)

// newCSIGuard returns a guard for the CSI plugin among plugins.
func newCSIGuard(plugins []volume.VolumePlugin) (*csiGuard, error) {
	for _, p := range plugins {
		if p.GetPluginName() == csi.CSIPluginName {
			return &csiGuard{csi: p}, nil
		}
	}
	return nil, fmt.Errorf("the kubelet has no volume plugin %s", csi.CSIPluginName)
}

// Init implements volume.VolumePlugin. The kubelet calls it after the CSI plugin's Init.
func (k *csiGuard) Init(host volume.VolumeHost) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.host = host
	if !k.again {
		return nil
	}
	return k.csi.Init(host)
}

// reclaim initializes the CSI plugin for the kubelet again.
func (k *csiGuard) reclaim() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = true
	if k.host == nil {
		return nil // Init will do it
	}
	if err := k.csi.Init(k.host); err != nil {
		return fmt.Errorf("initialize the CSI plugin again: %w", err)
	}
	return nil
}

// csiRetryPause is the pause between attempts to write a CSINode.
const csiRetryPause = time.Minute

// Forgive handles a fatal error of the kubelet that needs no restart: if the CSINode of a new node cannot be written
// for two minutes, for example because a webhook refuses it, upstream wants to end the process. Forgive retries
// instead. It reports whether it handled the error.
func (k *Kubelet) Forgive(reason error) bool {
	guard := k.csi.Load()
	if guard == nil || !strings.Contains(reason.Error(), "initialize CSINode") {
		return false
	}
	k.cfg.Log.Warn("the CSINode cannot be written, trying again; the node is not ready until it is", "error", reason,
		"in", csiRetryPause)
	time.AfterFunc(csiRetryPause, func() {
		if err := guard.reclaim(); err != nil {
			k.cfg.Log.Error("cannot initialize the CSI plugin again", "error", err)
		}
	})
	return true
}

var errNoVolumes = errors.New("this plugin has no volumes")

func (*csiGuard) GetPluginName() string                                    { return "umiak.io/csi-keeper" }
func (*csiGuard) GetVolumeName(*volume.Spec) (string, error)               { return "", errNoVolumes }
func (*csiGuard) CanSupport(*volume.Spec) bool                             { return false }
func (*csiGuard) RequiresRemount(*volume.Spec) bool                        { return false }
func (*csiGuard) SupportsMountOption() bool                                { return false }
func (*csiGuard) SupportsSELinuxContextMount(*volume.Spec) (bool, error)   { return false, nil }
func (*csiGuard) NewMounter(*volume.Spec, *v1.Pod) (volume.Mounter, error) { return nil, errNoVolumes }
func (*csiGuard) NewUnmounter(string, types.UID) (volume.Unmounter, error) { return nil, errNoVolumes }
func (*csiGuard) ConstructVolumeSpec(string, string) (volume.ReconstructedVolume, error) {
	return volume.ReconstructedVolume{}, errNoVolumes
}
