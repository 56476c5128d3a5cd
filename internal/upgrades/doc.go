// Package upgrades is what servers, agents and `umiak upgrade cluster` say to each other about the upgrade of a
// cluster: the Upgrade object, and two annotations of a Node. A server asks a node by the one, and the node's agent
// answers by the other.
//
// It imports apimachinery alone. The object's schema is manifests/upgrades.yaml.
package upgrades
