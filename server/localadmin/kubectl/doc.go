// Package kubectl runs upstream's kubectl in this process, as the administrator of this machine's server where the user
// names no other.
//
// cmd/umiak calls Run and prints its error as kubectl does. The package imports nothing of server: it reads the
// administrator's kubeconfig, and looks whether the server runs.
package kubectl
