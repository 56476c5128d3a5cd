// Package repotest holds the rules of this repository as ordinary tests: what may import what, who may end
// the process, that packages are documented once, that scripts are sound and links lead somewhere.
//
// It has no code of its own and nothing imports it.
package repotest
