// Package nft brings the elements of package rules into the proxy's tables in the kernel.
//
// A Table is the table of one family. Apply sends a change of some elements as one batch, whose cost does not grow
// with the table. Sync makes the whole table as wanted: at start, where it adopts what an earlier process has left,
// after an error, and after a change by another program. Package netfilter encodes messages for nf_tables, compares
// tables and repairs them. Package proxy calls Table.
package nft
