// Package upgrades upgrades the nodes of a cluster to the version in an Upgrade object: one node at a time, servers
// first, each only when its pods' disruption budgets allow it. It requests a node's upgrade with an annotation; the
// node's agent (agent/upgrade) does the work, restores the old version if the new one does not become ready, and
// answers.
//
// plan.go decides the next step, as a pure function of the Upgrade and the Nodes. All state is in these objects, so
// that another server, or this one in its new version, continues. budgets.go checks the pods of the next node. While
// there is no Upgrade, the controller watches only Upgrades.
//
// The server runs the controller on the leader; cmd/umiak uses Client. The package imports client-go, internal/ and
// server/cachetrim.
package upgrades
