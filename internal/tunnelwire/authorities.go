package tunnelwire

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

// AuthoritiesPath is where a server asks a node, through the tunnel and with POST, to have the authorities with the hash
// in the query parameter AuthoritiesHash. The node renews its certificates if it has others, and answers with Authorities.
const (
	AuthoritiesPath = "/umiak/v1/authorities"
	AuthoritiesHash = "hash"
)

// Authorities says whom a node trusts.
type Authorities struct {
	// Hash is that of HashAuthorities.
	Hash string `json:"hash"`
	// AgeSeconds is how long ago the node got these or its certificates, whatever came last.
	AgeSeconds int64 `json:"ageSeconds"`
}

// HashAuthorities is the hash of the two CA files that a node gets when it joins or renews.
func HashAuthorities(serverCA, clientCA []byte) string {
	h := sha256.New()
	_, _ = h.Write(serverCA) // a hash takes everything
	_, _ = io.WriteString(h, "\x00")
	_, _ = h.Write(clientCA)
	return hex.EncodeToString(h.Sum(nil)[:16])
}
