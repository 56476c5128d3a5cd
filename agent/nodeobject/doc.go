// Package nodeobject keeps this node's Node object as the settings describe it: labels, taints and external addresses.
//
// The kubelet sets labels and taints only when it registers the node, and external addresses never. Package agent runs
// an Object as the part "labels" and gives other parts its Annotate. It imports internal/wellknown alone.
package nodeobject
