// Package netfilter is the one way in which the agent's data plane and its CNI plugin speak to nf_tables.
//
// The parts describe their tables in package ruleset. This package brings them into the kernel:
//
//   - A Conn is a netlink socket. It sends a Batch, which the kernel accepts as a whole or refuses, and reads.
//   - A Table writes chains, rules, sets and elements into a batch, and reads them back. Each rule carries the digest
//     of its text, which identifies it without decompiling it.
//   - Table.Reconcile makes a table as desired, from whatever state it is in: it reads, compares and sends one batch
//     with the difference. It is used at start, where it adopts the table of an earlier process, after an error, and
//     after a change by another program. Table.Apply sends a given change, whose cost does not grow with the table.
//   - A Watcher reports changes by other programs. Package reconcile has the loop that decides when to write and to
//     repair.
//   - Remove and RemoveAll delete tables: for parts that start without one, for `umiak cleanup` and `umiak uninstall`.
//
// Packets see a batch in one moment, except for the elements of sets of ranges, which come a little later than the
// rules of the same batch (Linux 6.18, nft_set_pipapo); see Apply.
//
// Expressions are those of github.com/google/nftables/expr. Messages are written here, because that library's Flush
// requests an acknowledgement of every message and fetches each with system calls, puts all elements of a set into one
// attribute, which holds 64 KiB, and reads rules chain by chain.
//
// The package is linked into the CNI plugin, which runs for milliseconds: it imports nothing of umiak but ruleset.
package netfilter
