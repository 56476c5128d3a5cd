package k3s

import (
	"os"
	"strings"

	"github.com/umiak-io/umiak/internal/config"
)

// Etc is k3s' folder of settings.
const Etc = "/etc/rancher/k3s"

// Uses reports whether settings come from k3s: their file is at one of its paths or named by its variable, or has keys
// that only k3s has.
func Uses(s config.Settings) bool {
	return s.Foreign || strings.HasPrefix(s.File, "/etc/rancher/") || s.File == os.Getenv("K3S_CONFIG_FILE")
}

// NoTraefik is the warning about settings from k3s that do not disable its ingress controller.
const NoTraefik = "k3s would run the ingress controller traefik, and umiak has none yet: install one, and set " +
	"disable: traefik"
