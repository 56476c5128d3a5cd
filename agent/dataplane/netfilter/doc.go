// Package netfilter speaks with nf_tables through netlink for the parts of the agent that keep tables of
// their own.
//
// A Conn sends batches, which the kernel takes whole or not at all, and reads what is there. A Table
// writes the chains, rules, sets and elements of package ruleset into a Batch. A Watcher says when
// somebody else changed a table. What belongs into a table, and how what is there is compared with it, is
// for the callers: agent/dataplane/proxy/nft and agent/dataplane/netpol.
//
// Packets see a batch in one moment but for sets of ranges, whose elements come a little later than the rules of
// the same batch (Linux 6.18, nft_set_pipapo): who wants no packet between puts them into a batch before.
//
// Expressions are those of github.com/google/nftables. Messages are written here, because that
// library's Flush asks for an acknowledgement of every message and fetches each with system calls of its
// own, puts all elements of a set in one attribute, which holds 64 KiB, and reads rules chain by chain.
package netfilter
