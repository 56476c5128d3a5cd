// Package uninstall reverses what install.sh did: it removes the service and its unit, the program, the settings and,
// with package cleanup, everything that the node put on the machine.
//
// It removes the files on the list that install.sh writes (/etc/umiak/installed), the links to the program that
// install.sh makes beside it, and no others. The program goes last, the list shortly before, so that an interrupted run
// can be repeated.
//
// `umiak uninstall` calls it. It imports nothing of umiak.
package uninstall
