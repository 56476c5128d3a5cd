// Package yamlfile reads the YAML files that people write for umiak: which files of a folder count, their bytes, and the one document that
// each may hold. What the document means is for the caller.
//
// It imports nothing of umiak.
package yamlfile
