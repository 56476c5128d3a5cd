// Package upstream runs the tests of kube-apiserver's own storage layer against our datastore. It has no
// code but tests, apart from the others because they link the API server's library.
package upstream
