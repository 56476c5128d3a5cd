// Package yamlfile reads the YAML files that users write for umiak: it selects the files of a folder, reads them, and
// parses the one document that each may have. The caller interprets the document.
//
// It imports nothing of umiak; any package may call it.
package yamlfile
