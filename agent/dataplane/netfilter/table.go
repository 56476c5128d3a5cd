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
	ruleDigest    = 200  // our own type of rule user data; nft passes over what it does not know
	elemComment   = 0    // NFTNL_UDATA_SET_ELEM_COMMENT
	// MaxComment is how long an element's comment may be, its end included.
	MaxComment = 128
)

// Table is a table of ours: what it is made of is written into batches, and read.
type Table struct {
	Conn   *Conn
	Family ruleset.Family
	Name   string
	// Words is how many registers fills what a ruleset.MapOf gives.
	Words int
}

// version is part of every digest: raise it when the same text is compiled to other expressions.
const version = 1

// Digest identifies a chain by what it should hold.
func Digest(c ruleset.Chain) uint64 {
	hashes := make([]uint64, 0, len(c.Rules))
	for _, r := range c.Rules {
		hashes = append(hashes, ruleHash(r))
	}
	return digestOf(c.Name, hookOf(c), hashes)
}

func digestOf(name string, hook ruleset.Hook, hashes []uint64) uint64 {
	h := fnv.New64a()
	fmt.Fprintln(h, name, hook, hashes)
	return h.Sum64()
}

// ruleHash identifies a rule; the kernel keeps it with the rule.
func ruleHash(r ruleset.Rule) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", version, r)
	return h.Sum64()
}

func hookOf(c ruleset.Chain) ruleset.Hook {
	if c.Hook == nil {
		return ruleset.Hook{}
	}
	return *c.Hook
}

// Change sends what fill appends to a batch.
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
func (t *Table) Batch() *Batch { return NewBatch(uint8(t.Family)) }

var hooks = map[string]uint32{"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}

// AddChain appends a chain without its rules; a chain that is there stays as it is.
func (t *Table) AddChain(b *Batch, c ruleset.Chain) {
	b.Msg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.Str(unix.NFTA_CHAIN_TABLE, t.Name)
	b.Str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != nil {
		at := b.Nest(unix.NFTA_CHAIN_HOOK)
		b.U32(unix.NFTA_HOOK_HOOKNUM, hooks[c.Hook.Name])
		b.U32(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority))
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
		b.Raw(unix.NFTA_RULE_USERDATA, string(be.AppendUint64([]byte{ruleDigest, 8}, ruleHash(r))))
		b.End()
	}
	return nil
}

// Flags of a set, with the pseudo flag concat.
func setFlags(s ruleset.SetSpec) uint32 {
	var f uint32
	if len(s.Val) > 0 {
		f |= unix.NFT_SET_MAP
	}
	if s.Ranges {
		f |= unix.NFT_SET_INTERVAL | setConcat
	}
	if s.Dynamic {
		f |= unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
	}
	return f
}

// AddSet appends a set or map. id is unique among the sets of the batch.
func (t *Table) AddSet(b *Batch, id uint32, s ruleset.SetSpec) {
	fam := t.Family
	keyType, keyLen := TypeOf(fam, s.Key)
	b.Msg(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.Str(unix.NFTA_SET_TABLE, t.Name)
	b.Str(unix.NFTA_SET_NAME, s.Name)
	b.U32(unix.NFTA_SET_FLAGS, setFlags(s))
	b.U32(unix.NFTA_SET_KEY_TYPE, keyType)
	b.U32(unix.NFTA_SET_KEY_LEN, uint32(keyLen))
	b.U32(unix.NFTA_SET_ID, id)
	if len(s.Val) > 0 {
		typ, n := TypeOf(fam, s.Val)
		b.U32(unix.NFTA_SET_DATA_TYPE, typ)
		b.U32(unix.NFTA_SET_DATA_LEN, uint32(n))
	}
	if s.Ranges {
		desc := b.Nest(unix.NFTA_SET_DESC)
		list := b.Nest(setDescConcat)
		for _, f := range s.Key {
			one := b.Nest(unix.NFTA_LIST_ELEM)
			b.U32(setFieldLen, uint32(f.Len(fam)))
			b.Unnest(one)
		}
		b.Unnest(list)
		b.Unnest(desc)
	}
	// What nft needs to print values in the right byte order.
	order := func(fields []ruleset.Field) uint32 {
		if len(fields) == 1 && fields[0] == ruleset.Mark {
			return 1 // host
		}
		return 2 // network
	}
	ud := append([]byte{0, 4}, u32ne(order(s.Key))...)
	if len(s.Val) > 0 {
		ud = append(append(ud, 1, 4), u32ne(order(s.Val))...)
	}
	b.Raw(unix.NFTA_SET_USERDATA, string(ud))
	b.End()
}

func u32ne(v uint32) []byte { return ne.AppendUint32(nil, v) }

// Elems puts elements into messages of a batch, as many into each as go.
type Elems struct {
	table *Table
	b     *Batch
	typ   uint16
	set   string
	list  int
}

// Elems appends elements to a batch. Close ends that, before anything else is appended.
func (t *Table) Elems(b *Batch) *Elems { return &Elems{table: t, b: b} }

func (e *Elems) open(typ uint16, set string) {
	if e.list != 0 && e.typ == typ && e.set == set && len(e.b.b)-e.list < maxNested {
		return
	}
	e.Close()
	var flags uint16
	if typ == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	e.typ, e.set = typ, set
	e.b.Msg(typ, flags)
	e.b.Str(unix.NFTA_SET_ELEM_LIST_TABLE, e.table.Name)
	e.b.Str(unix.NFTA_SET_ELEM_LIST_SET, set)
	e.list = e.b.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

// Close ends the open message, if any.
func (e *Elems) Close() {
	if e.list != 0 {
		e.b.Unnest(e.list)
		e.b.End()
		e.list = 0
	}
}

// Add appends a new element. The key of a range is the first key, then the last one.
func (e *Elems) Add(s ruleset.SetSpec, key, val, comment string) {
	e.put(unix.NFT_MSG_NEWSETELEM, s, key, val, comment)
}

// Delete appends the end of an element.
func (e *Elems) Delete(s ruleset.SetSpec, key string) { e.put(unix.NFT_MSG_DELSETELEM, s, key, "", "") }

func (e *Elems) put(typ uint16, s ruleset.SetSpec, key, val, comment string) {
	e.open(typ, s.Name)
	b := e.b
	el := b.Nest(unix.NFTA_LIST_ELEM)
	value := func(attr uint16, v string) {
		at := b.Nest(attr)
		b.Raw(unix.NFTA_DATA_VALUE, v)
		b.Unnest(at)
	}
	if s.Ranges {
		value(unix.NFTA_SET_ELEM_KEY, key[:len(key)/2])
		value(setElemKeyEnd, key[len(key)/2:])
	} else {
		value(unix.NFTA_SET_ELEM_KEY, key)
	}
	if typ == unix.NFT_MSG_NEWSETELEM {
		switch {
		case val == "":
		case isVerdict(s.Val):
			data := b.Nest(unix.NFTA_SET_ELEM_DATA)
			verdict := b.Nest(unix.NFTA_DATA_VERDICT)
			b.U32(unix.NFTA_VERDICT_CODE, jumpCode)
			b.Str(unix.NFTA_VERDICT_CHAIN, val)
			b.Unnest(verdict)
			b.Unnest(data)
		default:
			value(unix.NFTA_SET_ELEM_DATA, val)
		}
		if comment != "" {
			comment = comment[:min(len(comment), MaxComment-1)]
			b.Raw(unix.NFTA_SET_ELEM_USERDATA, string([]byte{elemComment, byte(len(comment) + 1)})+comment+"\x00")
		}
	}
	b.Unnest(el)
}

// isVerdict reports whether a map gives verdicts.
func isVerdict(val []ruleset.Field) bool { return len(val) == 1 && val[0] == ruleset.ChainName }

// jumpCode is NFT_JUMP as the kernel takes it.
const jumpCode = 0xfffffffd

// FlushRules takes all rules of a chain away.
func (t *Table) FlushRules(b *Batch, chain string) {
	b.Msg(unix.NFT_MSG_DELRULE, 0)
	b.Str(unix.NFTA_RULE_TABLE, t.Name)
	b.Str(unix.NFTA_RULE_CHAIN, chain)
	b.End()
}

// DeleteChain takes a chain away that nothing leads to.
func (t *Table) DeleteChain(b *Batch, chain string) {
	b.Msg(unix.NFT_MSG_DELCHAIN, 0)
	b.Str(unix.NFTA_CHAIN_TABLE, t.Name)
	b.Str(unix.NFTA_CHAIN_NAME, chain)
	b.End()
}

// DeleteSet takes a set away that no rule uses, with its elements.
func (t *Table) DeleteSet(b *Batch, set string) {
	b.Msg(unix.NFT_MSG_DELSET, 0)
	b.Str(unix.NFTA_SET_TABLE, t.Name)
	b.Str(unix.NFTA_SET_NAME, set)
	b.End()
}

// Anew empties the table by taking it away, if it is there, and adding it again.
func (t *Table) Anew(b *Batch) {
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE) // so that there is one to delete
	t.table(b, unix.NFT_MSG_DELTABLE, 0)
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
}

func (t *Table) table(b *Batch, typ, flags uint16) {
	b.Msg(typ, flags)
	b.Str(unix.NFTA_TABLE_NAME, t.Name)
	if typ == unix.NFT_MSG_NEWTABLE {
		b.U32(unix.NFTA_TABLE_FLAGS, 0)
	}
	b.End()
}

// Delete removes the table, if it is there.
func (t *Table) Delete(ctx context.Context) error {
	b := t.Batch()
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	t.table(b, unix.NFT_MSG_DELTABLE, 0)
	if err := t.Conn.Commit(ctx, b); err != nil {
		return fmt.Errorf("delete table %s %s: %w", t.Family, t.Name, err)
	}
	return nil
}
