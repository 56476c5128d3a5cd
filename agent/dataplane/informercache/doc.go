// Package informercache is the one cache of cluster objects that the service proxy, DNS and network policies of a
// node share. It keeps of each object what one of them reads.
//
// It imports client-go alone; package agent makes one, and so does the proxy's bench.
package informercache
