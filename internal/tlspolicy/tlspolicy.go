// Package tlspolicy says with which ciphers Umiak's servers speak TLS.
package tlspolicy

// CipherSuites are the names of the suites of TLS 1.2 with forward secrecy and authenticated encryption, as flags of
// Kubernetes' components take them. TLS 1.3 chooses by itself.
func CipherSuites() []string {
	return []string{
		"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
		"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
		"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	}
}
