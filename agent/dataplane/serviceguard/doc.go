// Package serviceguard works out which addresses and ports of this node and its servers no Service may take, and gives
// the service proxy a new proxy.Guard whenever servers or the cluster's settings change.
//
// It imports agent/dataplane/proxy and internal/systemports. Package agent runs it beside the proxy.
package serviceguard
