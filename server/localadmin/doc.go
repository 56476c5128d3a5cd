// Package localadmin does what an administrator's commands ask of the server on this machine: it asks the running
// server over its control socket, or works on the files of one that is stopped.
//
// It decides which of the two, checks beforehand what would lock somebody out, and adds the remedy to errors. It
// imports server and its packages. cmd/umiak parses flags, calls it and prints.
package localadmin
