// Package filewatch reports when one of a few files changes, wherever it is: neither it nor its folder need exist, it
// may be a link, a file that is replaced by a rename, or one that is mounted over another.
//
// Changes are detected with inotify and, where asked for, with the kernel's list of mounts. agent/host/resolver follows
// the host's resolv.conf with it, agent/runtime/registries its settings. Whole folders are watched where their content
// has a meaning: agent/runtime/images, agent/kubelet/pullrecords, agent/upgrade, server/addons. It imports agent/host
// and internal/.
package filewatch
