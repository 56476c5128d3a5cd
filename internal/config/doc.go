// Package config fills settings structs from flags, environment variables and YAML files.
//
// A setting is a struct field with tags: it stands in one place, with its key, default and help.
//
//	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything is kept"`
//
// The key is the flag (--data-dir), the environment variable (UMIAK_DATA_DIR) and the YAML key. Flags
// win over the environment, that over files; /etc/umiak/config.yaml is read first, then the drop-ins in
// config.yaml.d in name order. A later file replaces a key of an earlier one; written `key+:` a list is
// added to instead. Every mistake in every source is reported at once, each with where it stands.
//
// Lists are split at commas in every source, except those whose key ends in -arg: their values are passed on to components,
// commas included. In a variable, each line is one of them.
//
// Commands that look at the installed service read umiak.env beside the settings file as well (LoadInstalled), the file from
// which the service's init system takes its environment.
//
// Fields may be string, bool, int, time.Duration or []string; untagged structs inside are walked
// through. Several structs may name the same key: they get the same value.
package config
