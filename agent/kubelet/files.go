package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	conversion "k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"
	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/yamlfile"
)

// dropins lists the KubeletConfiguration files in dir, sorted by name: *.conf, as the kubelet reads them, *.yaml and
// *.yml. If needed is false, dir may be missing.
func dropins(dir string, needed bool) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	files, _, err := yamlfile.Folder(dir, extensions...)
	if err != nil {
		if !needed && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("read the kubelet's configuration: %w", err)
	}
	return files, nil
}

// extensions are the file name extensions of KubeletConfiguration files.
var extensions = []string{".conf", ".yaml", ".yml"}

// PassedOver returns a message for each file in ConfigDir that is ignored because of its name, and for each flag that
// has no effect.
func (c Config) PassedOver() (out []string) {
	_, over, _ := yamlfile.Folder(c.ConfigDir, extensions...) // Check reports errors of the folder
	for _, file := range over {
		out = append(out, file+" is ignored: names of KubeletConfiguration files end in .yaml, .yml or .conf")
	}
	return append(out, componentflags.LogRemarks("kubelet-arg", c.Args)...)
}

// mergeFile merges a KubeletConfiguration file into conf; fields that the file does not set keep their values.
func mergeFile(conf *kubeletconfig.KubeletConfiguration, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("find %s: %w", file, err)
	}
	loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, file)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	// The kubelet's loader accepts unknown and duplicate fields: decode strictly first.
	text, err := yamlfile.Read(file)
	if err != nil {
		return fmt.Errorf("read the kubelet's configuration: %w", err)
	}
	if _, err := yamlfile.Document(text); err != nil {
		return fmt.Errorf("%s:%w", file, err)
	}
	if err := yaml.UnmarshalStrict(text, &kubeletv1beta1.KubeletConfiguration{}); err != nil {
		return fmt.Errorf("%s: %s", file, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	raw, gvk, err := loader.LoadIntoJSON()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if want := conversion.SchemeGroupVersion.WithKind("KubeletConfiguration"); gvk == nil || *gvk != want {
		return fmt.Errorf("%s: not a KubeletConfiguration of %s", file, conversion.SchemeGroupVersion)
	}
	var versioned kubeletv1beta1.KubeletConfiguration
	if err := conversion.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(conf, &versioned,
		nil); err != nil {
		return fmt.Errorf("convert the kubelet's configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &versioned); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	conversion.SetDefaults_KubeletConfiguration(&versioned)
	merged := kubeletconfig.KubeletConfiguration{}
	if err := conversion.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(&versioned, &merged,
		nil); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	*conf = merged
	return nil
}
