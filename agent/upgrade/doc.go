// Package upgrade upgrades this node's program to another version. It runs the install.sh that installed the program,
// which verifies the release, keeps all settings, starts the new version and restores the old one if the new one does
// not become ready.
//
// `umiak upgrade` calls it. In package agent, a Follower does the same when the cluster requests it (server/upgrades),
// and a node that has become ready calls Confirm. It imports agent/bundle and internal/.
package upgrade
