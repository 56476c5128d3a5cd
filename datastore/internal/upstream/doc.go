// Package upstream runs the tests of kube-apiserver's storage layer against the datastore. It has only tests, which are
// apart from those of package datastore because they link the API server's library.
package upstream
