// Package upgrade brings this node's program to another version: it runs the install.sh that installed it, which checks
// the release, keeps all settings, starts the new version and puts the old one back when that does not become ready.
//
// `umiak upgrade` calls it, package agent has a Follower do the same when the cluster asks for it (server/upgrades), and a
// node that has become ready calls Confirm.
package upgrade
