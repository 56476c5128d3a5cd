package localadmin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/internal/layout"
)

// ClientConfig returns how to reach the cluster as its administrator under a user agent: by kubeconfig, or by that of
// this machine's server where kubeconfig is empty or a list of files.
func ClientConfig(d layout.Dirs, kubeconfig, userAgent string) (*rest.Config, error) {
	file := kubeconfig
	if file == "" || strings.Contains(file, string(os.PathListSeparator)) {
		file = d.AdminKubeconfig()
	}
	rc, err := clientcmd.BuildConfigFromFlags("", file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is not there: run this on a server, or with KUBECONFIG set", file)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w; run as root, or set KUBECONFIG", file, err)
	}
	return rest.AddUserAgent(rc, userAgent), nil
}
