// Package httpproxy decides which connections of the process use an HTTP proxy (HTTPS_PROXY, HTTP_PROXY).
//
// Connections within the cluster do not: to API servers, kubelets, webhooks, aggregated APIs, etcd members and nodes.
// Connections to the outside may: to registries, object stores, releases, an OIDC issuer. Upstream's libraries read
// only the variable NO_PROXY, each when it is first used, so Exempt extends that variable before. umiak's own
// transports to the outside use Proxy, which has only the user's settings.
//
// It imports nothing of umiak; both programs call it.
package httpproxy
