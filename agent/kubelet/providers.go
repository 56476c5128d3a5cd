package kubelet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/kubernetes/pkg/credentialprovider/plugin"
	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/componentflags"
	"github.com/umiak-io/umiak/internal/yamlfile"
)

// CredentialProviders are the kubelet's plugins that get credentials for registries. The zero value means none; the
// same flags in Config.Args take precedence.
type CredentialProviders struct {
	BinDir string // folder of their programs
	Config string // file or folder of CredentialProviderConfig
}

const (
	providersKey   = "image-credential-provider-config"
	providerBinKey = "image-credential-provider-bin-dir"
)

// CheckFiles returns the errors in files that the settings name and for which upstream's kubelet would end the process.
func (c Config) CheckFiles() error {
	file, dir := c.CredentialProviders.Config, c.CredentialProviders.BinDir
	for _, a := range c.Args {
		switch name, value, _ := componentflags.Split(a); name {
		case "image-credential-provider-config":
			file = value
		case "image-credential-provider-bin-dir":
			dir = value
		}
	}
	return checkProviders(file, dir)
}

// checkProviders returns the errors for which upstream's kubelet would end the process because of its credential
// provider plugins.
func checkProviders(config, bin string) error {
	switch {
	case config == "" && bin == "":
		return nil
	case config == "":
		return fmt.Errorf("%s: needs image-credential-provider-config", providerBinKey)
	case bin == "":
		return fmt.Errorf("%s: needs image-credential-provider-bin-dir", providersKey)
	}
	var errs []error
	if st, err := os.Stat(bin); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", providerBinKey, err))
	} else if !st.IsDir() {
		errs = append(errs, fmt.Errorf("%s: %s is not a folder", providerBinKey, bin))
	}
	names, err := providers(config)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("%s: %w", providersKey, err))...)
	}
	if len(errs) == 0 {
		for _, name := range names {
			if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
				errs = append(errs, fmt.Errorf("%s: the program of %s: %w", providerBinKey, name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// providers returns the names of the providers in a CredentialProviderConfig file, or folder of such files, if upstream
// accepts it.
func providers(config string) ([]string, error) {
	st, err := os.Stat(config)
	if err != nil {
		return nil, err
	}
	files := []string{config}
	if st.IsDir() {
		if files, _, err = yamlfile.Folder(config, ".json", ".yaml", ".yml"); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, file := range files {
		text, err := yamlfile.Read(file)
		if err != nil {
			return nil, err
		}
		if _, err := yamlfile.Document(text); err != nil {
			return nil, fmt.Errorf("%s:%w", file, err)
		}
		var c struct {
			Providers []struct {
				Name string `json:"name"`
			} `json:"providers"`
		}
		if err := yaml.Unmarshal(text, &c); err != nil {
			return nil, fmt.Errorf("%s: %s", file, strings.ReplaceAll(err.Error(), "\n", " "))
		}
		for _, p := range c.Providers {
			names = append(names, p.Name)
		}
	}
	// Upstream exports its checks only together with the registration of the plugins whose programs exist. With an
	// empty folder it registers none, and it reports other errors before it looks for programs.
	empty, err := os.MkdirTemp("", "umiak-providers")
	if err != nil {
		return nil, fmt.Errorf("create an empty folder: %w", err)
	}
	defer os.RemoveAll(empty) //nolint:errcheck // leaves an empty folder at worst
	err = plugin.RegisterCredentialProviderPlugins(config, empty, nil, nil)
	if err == nil || strings.HasPrefix(err.Error(), "plugin binary executable ") {
		return names, nil
	}
	return nil, err
}
