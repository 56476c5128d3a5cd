// Package tlspolicy defines the cipher suites of umiak's TLS servers. Server and agent use it. It imports nothing.
package tlspolicy

// CipherSuites returns the names of the cipher suites of TLS 1.2 with forward secrecy and authenticated encryption,
// as the flags of Kubernetes' components take them. Those of TLS 1.3 cannot be configured.
func CipherSuites() []string {
	return []string{
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
		"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
		"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	}
}
