// Package certfiles lists the certificates of umiak on a machine, those of a server and of a node: when each expires,
// when it is renewed and what uses it. It only reads files, so that it also works while umiak does not run.
//
// It has the names of the files and does not issue certificates. `umiak certificate check` and package pki use it. It
// imports internal/layout and internal/listing.
package certfiles
