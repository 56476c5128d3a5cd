// Package httpproxy says which of the process's connections may go to an HTTP proxy (HTTPS_PROXY, HTTP_PROXY).
//
// Nothing of the cluster's own may: API server, kubelets, webhooks, aggregated APIs, etcd members and nodes are reached
// directly. What lies outside may: registries, object stores, releases, an OIDC issuer. Upstream's libraries decide by
// the variable NO_PROXY and nothing else, each at its own time, so Exempt extends that variable before the first of them
// looks; transports of our own for what lies outside use Proxy, which knows the user's setting alone.
package httpproxy
