// Package advertise decides at which address other machines reach this server, and publishes it: in the API server's
// certificate, and through the API server's own endpoint.
//
// It imports agent/host/nodeip, which finds and follows the machine's addresses; package server calls it.
package advertise
