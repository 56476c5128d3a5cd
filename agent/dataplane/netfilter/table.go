package netfilter

import (
	"context"
	"fmt"
	"hash/fnv"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Attributes and flags that golang.org/x/sys/unix does not name.
const (
	setElemKeyEnd = 10   // NFTA_SET_ELEM_KEY_END
	setConcat     = 0x80 // NFT_SET_CONCAT
	setDescConcat = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen   = 1    // NFTA_SET_FIELD_LEN
	hookDevice    = 3    // NFTA_HOOK_DEV
	ruleComment   = 0    // NFTNL_UDATA_RULE_COMMENT
	ruleDigest    = 200  // a type of rule user data of umiak's; nft ignores types that it does not know
	elemComment   = 0    // NFTNL_UDATA_SET_ELEM_COMMENT
	// maxComment is the longest comment of an element that the kernel stores, its final zero included.
	maxComment = 128
)

// Table is a table of the kernel. Its methods append changes to batches, and read.
type Table struct {
	Conn   *Conn
	Family ruleset.Family
	Name   string
	// Words is the number of registers that the value of a ruleset.MapOf fills; 0 if the table has no such map.
	Words int
}

// version is part of every digest: raise it when the same text is compiled to other expressions.
const version = 1

// Digest identifies a rule by its text. The kernel stores it with the rule, so that the rule is known again.
func Digest(r ruleset.Rule) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", version, r)
	return h.Sum64()
}

// Change sends the batch that fill appends to.
func (t *Table) Change(ctx context.Context, fill func(*Batch) error) error {
	b := t.Batch()
	if err := fill(b); err != nil {
		return err
	}
	if err := t.Conn.Commit(ctx, b); err != nil {
		return fmt.Errorf("change table %s %s: %w", t.Family, t.Name, err)
	}
	return nil
}

// Batch begins a batch for the table's family.
func (t *Table) Batch() *Batch { return newBatch(uint8(t.Family)) }

// hooks are the kernel's numbers of hooks; that of ingress is in a family of its own.
var hooks = map[string]uint32{"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4, ingress: 0}

// ingress is the hook of tables of Netdev.
const ingress = "ingress"

// AddTable appends the table itself; a table that exists stays as it is.
func (t *Table) AddTable(b *Batch) { t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE) }

// AddChain appends a chain without its rules; a chain that exists stays as it is.
func (t *Table) AddChain(b *Batch, c ruleset.Chain) {
	b.Msg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.Str(unix.NFTA_CHAIN_TABLE, t.Name)
	b.Str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != nil {
		at := b.Nest(unix.NFTA_CHAIN_HOOK)
		b.U32(unix.NFTA_HOOK_HOOKNUM, hooks[c.Hook.Name])
		b.U32(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority))
		if c.Hook.Device != "" {
			b.Str(hookDevice, c.Hook.Device)
		}
		b.Unnest(at)
		b.U32(unix.NFTA_CHAIN_POLICY, 1) // accept
		b.Str(unix.NFTA_CHAIN_TYPE, c.Hook.Type)
	}
	b.End()
}

// AddRules appends a chain's rules behind those that it has.
func (t *Table) AddRules(b *Batch, c ruleset.Chain) error {
	return t.rules(b, c.Name, c.Rules, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
}

// InsertRule appends a rule that stands before those that the chain has.
func (t *Table) InsertRule(b *Batch, chain string, r ruleset.Rule) error {
	return t.rules(b, chain, []ruleset.Rule{r}, unix.NLM_F_CREATE)
}

func (t *Table) rules(b *Batch, chain string, rules []ruleset.Rule, flags uint16) error {
	for _, r := range rules {
		exprs, err := compile(t.Family, r, t.Words)
		if err != nil {
			return err
		}
		b.Msg(unix.NFT_MSG_NEWRULE, flags)
		b.Str(unix.NFTA_RULE_TABLE, t.Name)
		b.Str(unix.NFTA_RULE_CHAIN, chain)
		list := b.Nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range exprs {
			switch e := e.(type) {
			case string:
				b.Raw(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
			case expr.Any:
				data, err := expr.Marshal(byte(t.Family), e)
				if err != nil {
					return fmt.Errorf("marshal %T of %q: %w", e, r, err)
				}
				b.Raw(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, string(data))
			}
		}
		b.Unnest(list)
		b.Raw(unix.NFTA_RULE_USERDATA, userData(r))
		b.End()
	}
	return nil
}

// userData returns what is stored beside a rule: its comment, if it has one, and its digest.
func userData(r ruleset.Rule) string {
	var out []byte
	if n := len(r); n > 0 {
		if c, ok := r[n-1].(ruleset.Comment); ok {
			out = append(append(out, ruleComment, byte(len(c)+1)), c...)
			out = append(out, 0)
		}
	}
	return string(be.AppendUint64(append(out, ruleDigest, 8), Digest(r)))
}

// FlushRules appends the removal of all rules of a chain.
func (t *Table) FlushRules(b *Batch, chain string) {
	b.Msg(unix.NFT_MSG_DELRULE, 0)
	b.Str(unix.NFTA_RULE_TABLE, t.Name)
	b.Str(unix.NFTA_RULE_CHAIN, chain)
	b.End()
}

// DeleteRule appends the removal of one rule, by its handle.
func (t *Table) DeleteRule(b *Batch, chain string, handle uint64) {
	b.Msg(unix.NFT_MSG_DELRULE, 0)
	b.Str(unix.NFTA_RULE_TABLE, t.Name)
	b.Str(unix.NFTA_RULE_CHAIN, chain)
	b.Raw(unix.NFTA_RULE_HANDLE, string(be.AppendUint64(nil, handle)))
	b.End()
}

// DeleteChain appends the removal of a chain without rules that nothing refers to.
func (t *Table) DeleteChain(b *Batch, chain string) {
	b.Msg(unix.NFT_MSG_DELCHAIN, 0)
	b.Str(unix.NFTA_CHAIN_TABLE, t.Name)
	b.Str(unix.NFTA_CHAIN_NAME, chain)
	b.End()
}

// Recreate appends messages that delete the table, if it exists, and create it empty.
func (t *Table) Recreate(b *Batch) {
	t.AddTable(b) // so that there is one to delete
	t.table(b, unix.NFT_MSG_DELTABLE, 0)
	t.AddTable(b)
}

func (t *Table) table(b *Batch, typ, flags uint16) {
	b.Msg(typ, flags)
	b.Str(unix.NFTA_TABLE_NAME, t.Name)
	if typ == unix.NFT_MSG_NEWTABLE {
		b.U32(unix.NFTA_TABLE_FLAGS, 0)
	}
	b.End()
}
