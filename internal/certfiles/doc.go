// Package certfiles finds the certificates that umiak keeps on a machine, a server's and a node's, and says
// of each when it ends, when it is renewed and what uses it. It reads files and asks nobody, so that it works
// also where nothing runs, which is when one wants to know most.
//
// It knows names of files and nothing of how they come to be. `umiak certificate check` and package pki use
// it.
package certfiles
