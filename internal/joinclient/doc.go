// Package joinclient asks servers' join API (internal/joinwire): one request to one server, which errors are
// worth asking again for, and how long to wait in between.
//
// agent/join joins nodes with it, server joins servers. It may import internal/.
package joinclient
