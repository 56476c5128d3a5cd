// Package ruleset is the language in which umiak describes its nftables tables: tables, chains, rules, sets, maps and
// their elements. The String methods write a rule in nft's syntax, as far as nft has a word for it.
//
// The values are plain data. A package that decides what a table holds builds them; package netfilter compiles them,
// compares them with the kernel's tables and writes the difference. The package imports nothing of umiak.
package ruleset
