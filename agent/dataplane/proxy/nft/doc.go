// Package nft brings the tables of package rules into the kernel.
//
// A Table is one family's table. Apply sends a change as one batch, which the kernel takes whole or not
// at all. Sync reads what the kernel has, finds out what differs and sends that: at start it adopts what
// an earlier process left, after an error or a foreign change it repairs. Fake is a table without a
// kernel. How nf_tables is spoken to is package netfilter's business.
package nft
