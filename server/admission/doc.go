// Package admission holds the admission plugins of kube-apiserver that are umiak's. They run in its process, before any
// webhook: Upgrades refuses who asks a node for an upgrade without being allowed to, Nodes what a node says of itself and
// can use against others, Kubelets what else a node could do to others, Services what takes addresses and ports of the system.
package admission
