// Package k3s is the table of k3s' settings and what umiak does with each: the same setting, one of another name, a key
// without effect, or a mistake with its remedy.
//
// Its form is that of internal/config, the only package of umiak that it imports. The commands pass it to that package
// wherever they load settings; docs/from-k3s.md is generated from it.
package k3s
