// Package termtext removes control characters from untrusted text, for instance of nodes and images, before a
// terminal shows it. Commands call it. It imports nothing of umiak.
package termtext
