// Package release makes releases of the programs under test, in the layout and with the signature that scripts/release
// gives them, without its minutes of compressing: for tests of install.sh.
//
// It imports nothing of umiak. Tests call it.
package release
