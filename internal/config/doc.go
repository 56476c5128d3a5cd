// Package config fills settings structs from flags, environment variables and YAML files. The settings themselves, with
// their defaults, are in server/config.go and agent/config.go, and in the structs of other packages that these hold.
//
// A setting is a struct field whose tags have its key, default and help, so that each is defined in one place.
//
//	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything is kept"`
//
// More tags: values lists the only values that a string may have, with commas between; secret is "true" where the value
// must not be shown, and "file" where it names a file that only root may read. A field named _ with the tag topic begins
// a group of settings in the help and in docs/settings.md.
//
// The key is the flag (--data-dir), the environment variable (UMIAK_DATA_DIR) and the YAML key. Flags take precedence
// over the environment, the environment over files. /etc/umiak/config.yaml is read first, then the drop-ins in
// config.yaml.d, sorted by name. A later file replaces a key of an earlier one; `key+:` appends to a list instead.
// All mistakes in all sources are reported at once, each with its place.
//
// Lists are split at commas in every source, except those whose key ends in -arg: their values are passed to components
// with their commas. In a variable, each line is one value.
//
// Users may also write the keys of another program: a table of them (Foreign), which the command passes among the
// structs, gives each a setting of the same or another name, no effect, or a reason to refuse it. Two names of one
// setting in one source must have the same value.
//
// Commands that inspect the installed service also read umiak.env beside the settings file (LoadInstalled), the file
// from which the init system sets the environment of the service.
//
// Fields are strings, bools, ints, durations, addresses, types of this package, other types that unmarshal text, or
// lists of these. Untagged structs are searched for fields. If several structs have the same key, they get the same
// value.
//
// It imports internal/yamlfile and internal/secretfiles. Commands load settings with it.
package config
