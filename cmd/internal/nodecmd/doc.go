// Package nodecmd holds the commands that concern one node: `umiak` and `umiak-agent` both offer them.
//
// Commands parse, call one function of another package and print; they decide nothing.
package nodecmd
