// Package bundle packs all that machines without network need into one file, a bundle: the programs of a release,
// container images, manifests and settings; and reads one again.
//
// A bundle is a tar with one folder. What lies in that folder is a release (so its install.sh installs from it), and
// beside it images/, manifests/, config/ and BUNDLE.SHA256SUMS, the sums of all files. Those find damage, not malice:
// what is signed is the release.
//
// `umiak bundle` calls it, and `umiak upgrade` to unpack what it is given. It imports agent/runtime/images and layout of umiak.
package bundle
