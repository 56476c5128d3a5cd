package tunnelwire

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

// AuthoritiesPath is the path to which a server sends a POST request, through the tunnel, with the hash of the
// current CAs in the query parameter AuthoritiesHash. The node renews its certificates if it has other CAs, and
// answers with Authorities.
const (
	AuthoritiesPath = "/umiak/v1/authorities"
	AuthoritiesHash = "hash"
)

// Authorities identifies the CAs that a node trusts.
type Authorities struct {
	// Hash is the result of HashAuthorities.
	Hash string `json:"hash"`
	// AgeSeconds is the time since the node got these CAs or its certificates, whichever was later.
	AgeSeconds int64 `json:"ageSeconds"`
}

// HashAuthorities returns the hash of the two CA files that a node gets when it joins or renews.
func HashAuthorities(serverCA, clientCA []byte) string {
	h := sha256.New()
	_, _ = h.Write(serverCA) // a hash returns no error
	_, _ = io.WriteString(h, "\x00")
	_, _ = h.Write(clientCA)
	return hex.EncodeToString(h.Sum(nil)[:16])
}
