// Package k3sconvert translates the settings of k3s into a settings file of umiak: it reads k3s' files or its systemd
// unit, and writes each setting under umiak's name, with a comment on every line that is changed or left out.
//
// `umiak config from-k3s` calls it. It imports internal/config, internal/config/k3s and internal/yamlfile.
package k3sconvert
