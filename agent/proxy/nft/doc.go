// Package nft brings the tables of package rules into the kernel and keeps watch over them.
//
// A Table is one family's table. Apply sends a change as one batch, which the kernel takes whole or not
// at all. Sync reads what the kernel has, finds out what differs and sends that: at start it adopts what
// an earlier process left, after an error or a foreign change it repairs. Watch says when somebody else
// changed the table. Fake is a table without a kernel.
//
// Expressions are those of github.com/google/nftables. Messages are written here, because that
// library's Flush asks for an acknowledgement of every message and fetches each with system calls of its
// own, puts all elements of a set in one attribute, which holds 64 KiB, and reads rules chain by chain.
package nft
