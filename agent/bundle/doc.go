// Package bundle packs everything that machines without network need into one file, a bundle: the programs of a
// release, container images, manifests and settings. It also verifies and unpacks bundles.
//
// A bundle is a tar archive with one folder. The folder is a release, so that its install.sh installs from it, with
// additional folders images/, manifests/ and config/, and BUNDLE.SHA256SUMS, the checksums of all files. The checksums
// detect damage, not tampering; only the release is signed.
//
// `umiak bundle` calls it, and `umiak upgrade` to unpack its argument. It imports agent/runtime/images and internal/.
package bundle
