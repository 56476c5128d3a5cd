// Package upgrades defines the API by which servers, agents and `umiak upgrade cluster` upgrade a cluster: the
// Upgrade object, and two annotations of a Node. A server requests the upgrade of a node in one, and the node's agent
// answers in the other.
//
// It imports only apimachinery. The schema of the object is manifests/upgrades.yaml.
package upgrades
