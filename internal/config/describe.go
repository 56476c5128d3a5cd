package config

import (
	"reflect"
)

// Setting describes one setting for people.
type Setting struct {
	Key, Env string
	// Topic is the heading under which help lists the setting.
	Topic string
	// Type is what a value is, as "address range"; List reports that there may be several.
	Type string
	List bool
	// Default is the text of the value where nothing is set, empty for none.
	Default string
	// Help is what the setting does and the values that it may have.
	Help string
	// Secret reports that the value is a secret and never shown.
	Secret bool
}

// Describe returns the settings of the structs that dst points to, in their order.
func Describe(dst ...any) []Setting {
	var out []Setting
	for _, f := range collect(dst).fields {
		t := f.dst[0].Type()
		if f.isList() {
			t = t.Elem()
		}
		out = append(out, Setting{Key: f.key, Env: envOf(f.key), Topic: f.topic, Type: typeName(t), List: f.isList(),
			Default: f.def, Help: f.help(), Secret: f.secret})
	}
	return out
}

// typeName returns a word for the values of a type.
func typeName(t reflect.Type) string {
	switch t {
	case durationType:
		return "duration"
	case reflect.TypeFor[Port]():
		return "port"
	case reflect.TypeFor[PortRange]():
		return "range of ports"
	case reflect.TypeFor[FileMode]():
		return "file mode"
	}
	switch t.PkgPath() + "." + t.Name() {
	case "net/netip.Addr":
		return "address"
	case "net/netip.Prefix":
		return "address range"
	case "github.com/umiak-io/umiak/server/pki.SAN":
		return "name or address"
	case "github.com/umiak-io/umiak/agent/host/nodeip.Asked":
		return "address or interface"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "number"
	case reflect.Struct:
		return "addresses" // Range and a load balancer's
	}
	return "text"
}
