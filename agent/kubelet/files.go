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

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// dropins lists the files of KubeletConfiguration in dir, in the order of their names: *.conf, as the kubelet reads them, and
// *.yaml. A folder that need not exist may be missing.
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

// extensions are the ends of the names of files of KubeletConfiguration.
var extensions = []string{".conf", ".yaml", ".yml"}

// PassedOver returns a sentence for each file in the folder of KubeletConfiguration that looks as if it were read and is not.
func (c Config) PassedOver() (out []string) {
	_, over, _ := yamlfile.Folder(c.ConfigDir, extensions...) // Check says what is wrong with the folder
	for _, file := range over {
		out = append(out, file+" is not read: the names of files of KubeletConfiguration end in .yaml, .yml or .conf")
	}
	return out
}

// mergeFile lays a file of KubeletConfiguration over conf, field by field: what the file does not name stays.
func mergeFile(conf *kubeletconfig.KubeletConfiguration, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("find %s: %w", file, err)
	}
	loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, file)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	// The kubelet's own loader takes unknown and repeated fields.
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
		return fmt.Errorf("%s: it is not a KubeletConfiguration of %s", file, conversion.SchemeGroupVersion)
	}
	var versioned kubeletv1beta1.KubeletConfiguration
	if err := conversion.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(conf, &versioned, nil); err != nil {
		return fmt.Errorf("convert the kubelet's configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &versioned); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	conversion.SetDefaults_KubeletConfiguration(&versioned)
	merged := kubeletconfig.KubeletConfiguration{}
	if err := conversion.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(&versioned, &merged, nil); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	*conf = merged
	return nil
}
