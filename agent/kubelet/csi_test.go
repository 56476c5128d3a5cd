package kubelet

import (
	"testing"

	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
)

// counting is a CSI plugin that counts how often and with what it was initialised.
type counting struct {
	csiGuard
	hosts []volume.VolumeHost
}

func (c *counting) GetPluginName() string          { return csi.CSIPluginName }
func (c *counting) Init(h volume.VolumeHost) error { c.hosts = append(c.hosts, h); return nil }

type someHost struct{ volume.VolumeHost }

func TestTheKubeletsCSIPluginIsInitialisedLast(t *testing.T) {
	host := &someHost{}
	for _, c := range []struct {
		name  string
		steps func(k *csiGuard) error
		want  int // initialisations beside that of the kubelet's own list
	}{
		{"no controllers in the process", func(k *csiGuard) error { return k.Init(host) }, 0},
		{"controllers made after the kubelet", func(k *csiGuard) error {
			if err := k.Init(host); err != nil {
				return err
			}
			return k.reclaim()
		}, 1},
		{"controllers made while the kubelet initialises", func(k *csiGuard) error {
			if err := k.reclaim(); err != nil {
				return err
			}
			return k.Init(host)
		}, 1},
		{"another term as leader", func(k *csiGuard) error {
			for _, f := range []func() error{func() error { return k.Init(host) }, k.reclaim, k.reclaim} {
				if err := f(); err != nil {
					return err
				}
			}
			return nil
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &counting{}
			k, err := newCSIGuard([]volume.VolumePlugin{p})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.steps(k); err != nil {
				t.Fatal(err)
			}
			if len(p.hosts) != c.want {
				t.Fatalf("initialised %d times, want %d", len(p.hosts), c.want)
			}
			for _, h := range p.hosts {
				if h != volume.VolumeHost(host) {
					t.Fatal("initialised with another host than the kubelet's")
				}
			}
		})
	}
	if _, err := newCSIGuard(nil); err == nil {
		t.Fatal("a kubelet without a CSI plugin was accepted")
	}
}
