// Package upgrades brings the nodes of a cluster to the version that an Upgrade object names: one node at a time,
// servers first, each only when its pods' disruption budgets allow it. It asks a node by an annotation; the node's agent
// (agent/upgrade) does the work, puts the old version back when the new one does not become ready, and answers.
//
// plan.go decides, as a pure function of the Upgrade and the Nodes, what is next; everything that it has to remember is
// in these objects, so that another server, or this one in its new version, goes on where it was. budgets.go looks after
// the pods of the node that is next. While there is no Upgrade, only Upgrades are watched.
//
// server's assembly calls it on the leader. It imports client-go and nothing of Kubernetes' server side.
package upgrades
