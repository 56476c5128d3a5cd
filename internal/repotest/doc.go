// Package repotest holds the rules of this repository as ordinary tests: what may import what, which packages may end
// the process, that packages are documented once, that scripts are sound, that links lead somewhere and that pages
// quote messages that programs print.
//
// It has no code of its own and nothing imports it.
package repotest
