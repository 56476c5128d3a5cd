// Package admission contains umiak's admission plugins of kube-apiserver. They run in the API server's process, before
// webhooks. Upgrades refuses upgrade requests from users without the right to make them. Nodes refuses values in a Node
// with which the node could harm others. Kubelets refuses other requests of kubelets that could harm others. Services
// refuses Services that take addresses and ports of the system.
//
// The server registers them. The package imports internal/.
package admission
