package rules

import "github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"

type (
	// Family is IPv4 or IPv6. It and what follows are the words of package ruleset.
	Family  = ruleset.Family
	Field   = ruleset.Field
	SetSpec = ruleset.SetSpec
	Chain   = ruleset.Chain
	Hook    = ruleset.Hook
	Rule    = ruleset.Rule
	Stmt    = ruleset.Stmt
	Term    = ruleset.Term

	Load       = ruleset.Load
	Random     = ruleset.Random
	MapOf      = ruleset.MapOf
	InPrefix   = ruleset.InPrefix
	Local      = ruleset.Local
	InSet      = ruleset.InSet
	New        = ruleset.New
	Translated = ruleset.Translated
	IsTCP      = ruleset.IsTCP
	Marked     = ruleset.Marked
	SetMark    = ruleset.SetMark
	ClearMark  = ruleset.ClearMark
	DNAT       = ruleset.DNAT
	Remember   = ruleset.Remember
	Masquerade = ruleset.Masquerade
	Reject     = ruleset.Reject
	Jump       = ruleset.Jump
	Verdict    = ruleset.Verdict
)

// Families, protocols, fields and what rules load.
const (
	IPv4 = ruleset.IPv4
	IPv6 = ruleset.IPv6

	TCP  = ruleset.TCP
	UDP  = ruleset.UDP
	SCTP = ruleset.SCTP

	Addr  = ruleset.Addr
	Proto = ruleset.Proto
	Port  = ruleset.Port
	Mark  = ruleset.Mark

	Saddr     = ruleset.Saddr
	Daddr     = ruleset.Daddr
	L4        = ruleset.L4
	Dport     = ruleset.Dport
	OrigDaddr = ruleset.OrigDaddr
	OrigDport = ruleset.OrigDport
)
