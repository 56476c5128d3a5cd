// Package ruleset is the language in which the tables of umiak are described before they are compiled for
// the kernel: chains, rules, what rules look at, sets and maps, and how keys are encoded.
//
// It is plain data, without a kernel; its String methods write rules much as the nft program does.
// Packages that decide what a table holds use it; package netfilter compiles it.
package ruleset
