// Package storage runs the datastore as a part of the server.
//
// Current is the datastore while it is open, for all who read or write in it beside the API server. Runner opens the
// datastore, makes sure that it is this cluster's, and opens it again where that replaced its certificates or where a
// database was away. Once opens it for a command on a server that does not run.
//
// It may import datastore/ and internal/; server and server/cluster call it.
package storage
