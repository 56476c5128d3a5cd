// Package uninstall takes back what install.sh did: the service, its unit, the program, the settings, and by package
// cleanup all that the node put on the machine.
//
// It goes by the list of files that install.sh writes (/etc/umiak/installed) and removes none that is not in it.
// The list is removed last but for the program, so that a run that was broken off can be run again.
//
// `umiak uninstall` calls it.
package uninstall
