package yamlfile

import (
	"errors"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// Scalars returns the values of a scalar or of a list of scalars, aliases followed. A null is an error.
func Scalars(v *yaml.Node) ([]string, error) {
	switch v.Kind {
	case yaml.AliasNode:
		return Scalars(v.Alias)
	case yaml.ScalarNode:
		if v.Tag == "!!null" {
			return nil, errors.New("has no value")
		}
		return []string{v.Value}, nil
	case yaml.SequenceNode:
		out := []string{}
		for _, e := range v.Content {
			line := e.Line
			if e.Kind == yaml.AliasNode {
				e = e.Alias
			}
			if e.Kind != yaml.ScalarNode || e.Tag == "!!null" {
				return nil, fmt.Errorf("item at line %d is not a plain value", line)
			}
			out = append(out, e.Value)
		}
		return out, nil
	}
	return nil, errors.New("takes a value or a list, not a mapping")
}
