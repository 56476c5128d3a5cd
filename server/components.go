package server

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/manifests"
	"github.com/umiak-io/umiak/server/addons/manifest"
	"github.com/umiak-io/umiak/server/servicelb"
)

// Component is a name in the setting disable: a packaged component, or a manifest in the folder of manifests.
type Component string

// dnsComponent is the cluster's DNS.
const dnsComponent Component = "dns"

// foreignComponents are the packaged components of k3s that umiak does not have; to disable them is no mistake.
var foreignComponents = []string{"local-storage", "metrics-server", "runtimes", "traefik"}

// UnmarshalText reads a name. The name of k3s' DNS stands for umiak's.
func (c *Component) UnmarshalText(text []byte) error {
	*c = Component(text)
	if strings.TrimSuffix(string(text), filepath.Ext(string(text))) == "coredns" {
		*c = dnsComponent
	}
	return nil
}

// String returns the name.
func (c Component) String() string { return string(c) }

// Disables reports whether the setting disable has a name.
func (c Config) Disables(name string) bool { return slices.Contains(c.Disable, Component(name)) }

// PassedOver returns a sentence for each name in disable that no packaged component, component of k3s or manifest has,
// and for each flag of a component that has no effect.
func (c Config) PassedOver() []string {
	return slices.Concat(c.unknownComponents(), componentflags.LogRemarks("kube-apiserver-arg", c.APIServerArg),
		componentflags.LogRemarks("kube-controller-manager-arg", c.ControllerArg),
		componentflags.LogRemarks("kube-scheduler-arg", c.SchedulerArg))
}

func (c Config) unknownComponents() (out []string) {
	if len(c.Disable) == 0 {
		return nil
	}
	known := append([]string{servicelb.Name, "coredns"}, foreignComponents...)
	files := manifestNames(manifests.FS)
	known = append(known, files...)
	own := manifestNames(os.DirFS(c.Dirs().Manifests()))
	for _, d := range config.Texts(c.Disable) {
		if slices.Contains(known, d) || slices.ContainsFunc(slices.Concat(files, own),
			func(name string) bool { return manifest.Disabled(name, []string{d}) }) {
			continue
		}
		text := fmt.Sprintf("disable: %s is neither a packaged component nor a manifest in %s", d, c.Dirs().Manifests())
		if near := config.Nearest(d, append(known, own...)); near != "" {
			text += "; did you mean " + near + "?"
		}
		out = append(out, text)
	}
	return out
}

// manifestNames returns the names of the files in a folder of manifests: their paths without extension. A folder that
// cannot be read has none.
func manifestNames(fsys fs.FS) (out []string) {
	_ = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what can be read is enough for a suggestion
		}
		if name := strings.TrimSuffix(p, filepath.Ext(p)); name != p {
			out = append(out, name)
		}
		return nil
	})
	return out
}
