package nft

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/proxy/rules"
)

// Attributes and flags that golang.org/x/sys/unix does not name.
const (
	setElemKeyEnd  = 10   // NFTA_SET_ELEM_KEY_END
	setConcat      = 0x80 // NFT_SET_CONCAT
	setDescConcat  = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen    = 1    // NFTA_SET_FIELD_LEN
	ruleDigest     = 200  // our own type of rule user data; nft passes over what it does not know
	elemComment    = 0    // NFTNL_UDATA_SET_ELEM_COMMENT
	maxElemComment = 128
)

// Table is our table of one family in the kernel.
type Table struct {
	conn   *Conn
	cfg    rules.Config
	target int               // how many registers an endpoint fills
	digest map[string]uint64 // of each fixed chain
}

// Synced says what a Sync found and did.
type Synced struct {
	// Replaced says that the table was missing or not as this version of umiak makes it, and that it was
	// put there anew, in one step.
	Replaced bool
	// Added and Deleted are numbers of elements.
	Added, Deleted int
}

// NewTable prepares a table; nothing is sent yet.
func NewTable(conn *Conn, cfg rules.Config) (*Table, error) {
	t := &Table{conn: conn, cfg: cfg, digest: map[string]uint64{}}
	_, n := typeOf(cfg.Family, rules.Affinity()[0].Val)
	t.target = n / 4
	for _, c := range cfg.Layout() {
		t.digest[c.Name] = digest(c)
	}
	// What cannot be compiled should be known before there is anything to do.
	if err := t.layout(t.batch(), nil); err != nil {
		return nil, err
	}
	return t, nil
}

// fixedSets are the sets that are always there.
func fixedSets() []rules.SetSpec {
	out := rules.Affinity()
	for id := range rules.NumSets {
		if !id.Classed() {
			out = append(out, id.Spec())
		}
	}
	return out
}

// version is part of every digest: raise it when the same text is compiled to other expressions.
const version = 1

// digest identifies a chain by what it should hold.
func digest(c rules.Chain) uint64 {
	hashes := make([]uint64, 0, len(c.Rules))
	for _, r := range c.Rules {
		hashes = append(hashes, ruleHash(r))
	}
	return digestOf(c.Name, hookOf(c), hashes)
}

func digestOf(name string, hook rules.Hook, rules []uint64) uint64 {
	h := fnv.New64a()
	fmt.Fprintln(h, name, hook, rules)
	return h.Sum64()
}

// ruleHash identifies a rule; the kernel keeps it with the rule.
func ruleHash(r rules.Rule) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", version, r)
	return h.Sum64()
}

func hookOf(c rules.Chain) rules.Hook {
	if c.Hook == nil {
		return rules.Hook{}
	}
	return *c.Hook
}

func (t *Table) batch() *batch { return newBatch(uint8(t.cfg.Family)) }

var hooks = map[string]uint32{"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}

func (t *Table) addChain(b *batch, c rules.Chain) {
	b.nft(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	b.str(unix.NFTA_CHAIN_TABLE, rules.TableName)
	b.str(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != nil {
		at := b.nest(unix.NFTA_CHAIN_HOOK)
		b.u32(unix.NFTA_HOOK_HOOKNUM, hooks[c.Hook.Name])
		b.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority))
		b.unnest(at)
		b.u32(unix.NFTA_CHAIN_POLICY, 1) // accept
		b.str(unix.NFTA_CHAIN_TYPE, c.Hook.Type)
	}
	b.end()
}

func (t *Table) addRules(b *batch, c rules.Chain) error {
	for _, r := range c.Rules {
		exprs, err := compile(t.cfg.Family, r, t.target)
		if err != nil {
			return err
		}
		b.nft(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
		b.str(unix.NFTA_RULE_TABLE, rules.TableName)
		b.str(unix.NFTA_RULE_CHAIN, c.Name)
		list := b.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range exprs {
			switch e := e.(type) {
			case string:
				b.raw(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
			case expr.Any:
				data, err := expr.Marshal(byte(t.cfg.Family), e)
				if err != nil {
					return fmt.Errorf("marshal %T of %q: %w", e, r, err)
				}
				b.raw(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, string(data))
			}
		}
		b.unnest(list)
		b.raw(unix.NFTA_RULE_USERDATA, string(be.AppendUint64([]byte{ruleDigest, 8}, ruleHash(r))))
		b.end()
	}
	return nil
}

// Flags of a set, with the pseudo flag concat.
func setFlags(s rules.SetSpec) uint32 {
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

func (t *Table) addSet(b *batch, id uint32, s rules.SetSpec) {
	fam := t.cfg.Family
	keyType, keyLen := typeOf(fam, s.Key)
	b.nft(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	b.str(unix.NFTA_SET_TABLE, rules.TableName)
	b.str(unix.NFTA_SET_NAME, s.Name)
	b.u32(unix.NFTA_SET_FLAGS, setFlags(s))
	b.u32(unix.NFTA_SET_KEY_TYPE, keyType)
	b.u32(unix.NFTA_SET_KEY_LEN, uint32(keyLen))
	b.u32(unix.NFTA_SET_ID, id)
	if len(s.Val) > 0 {
		typ, n := typeOf(fam, s.Val)
		b.u32(unix.NFTA_SET_DATA_TYPE, typ)
		b.u32(unix.NFTA_SET_DATA_LEN, uint32(n))
	}
	if s.Ranges {
		desc := b.nest(unix.NFTA_SET_DESC)
		list := b.nest(setDescConcat)
		for _, f := range s.Key {
			one := b.nest(unix.NFTA_LIST_ELEM)
			b.u32(setFieldLen, uint32(f.Len(fam)))
			b.unnest(one)
		}
		b.unnest(list)
		b.unnest(desc)
	}
	// What nft needs to print values in the right byte order.
	order := func(fields []rules.Field) uint32 {
		if len(fields) == 1 && fields[0] == rules.Mark {
			return 1 // host
		}
		return 2 // network
	}
	ud := append([]byte{0, 4}, u32ne(order(s.Key))...)
	if len(s.Val) > 0 {
		ud = append(append(ud, 1, 4), u32ne(order(s.Val))...)
	}
	b.raw(unix.NFTA_SET_USERDATA, string(ud))
	b.end()
}

func u32ne(v uint32) []byte { return ne.AppendUint32(nil, v) }

// elems puts elements into messages, as many into each as go.
type elems struct {
	b    *batch
	typ  uint16
	set  string
	list int
}

func (e *elems) open(typ uint16, set string) {
	if e.list != 0 && e.typ == typ && e.set == set && len(e.b.b)-e.list < maxNested {
		return
	}
	e.close()
	var flags uint16
	if typ == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	e.typ, e.set = typ, set
	e.b.nft(typ, flags)
	e.b.str(unix.NFTA_SET_ELEM_LIST_TABLE, rules.TableName)
	e.b.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	e.list = e.b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (e *elems) close() {
	if e.list != 0 {
		e.b.unnest(e.list)
		e.b.end()
		e.list = 0
	}
}

// put appends an element.
func (e *elems) put(typ uint16, s rules.SetSpec, key, val, comment string) {
	e.open(typ, s.Name)
	b := e.b
	el := b.nest(unix.NFTA_LIST_ELEM)
	value := func(attr uint16, v string) {
		at := b.nest(attr)
		b.raw(unix.NFTA_DATA_VALUE, v)
		b.unnest(at)
	}
	if s.Ranges {
		value(unix.NFTA_SET_ELEM_KEY, key[:len(key)/2])
		value(setElemKeyEnd, key[len(key)/2:])
	} else {
		value(unix.NFTA_SET_ELEM_KEY, key)
	}
	if typ == unix.NFT_MSG_NEWSETELEM {
		if val != "" {
			value(unix.NFTA_SET_ELEM_DATA, val)
		}
		if comment != "" {
			comment = comment[:min(len(comment), maxElemComment-1)]
			b.raw(unix.NFTA_SET_ELEM_USERDATA, string([]byte{elemComment, byte(len(comment) + 1)})+comment+"\x00")
		}
	}
	b.unnest(el)
}

// change appends a change to a batch. Maps come before the rules that use them and go after those.
func (t *Table) change(b *batch, c rules.Change) error {
	for i, x := range c.AddClass {
		t.addSet(b, uint32(1000+i), x.Spec())
	}
	if len(c.AddClass)+len(c.DelClass) > 0 {
		// The chains that have a rule for each class are few and short: they are written anew, which
		// needs no knowledge of the rules that are there.
		for _, ch := range t.cfg.Variable(c.Classes) {
			b.nft(unix.NFT_MSG_DELRULE, 0)
			b.str(unix.NFTA_RULE_TABLE, rules.TableName)
			b.str(unix.NFTA_RULE_CHAIN, ch.Name)
			b.end()
			if err := t.addRules(b, ch); err != nil {
				return err
			}
		}
	}
	e := &elems{b: b}
	for _, x := range c.Del {
		// The elements of a map that goes go with it.
		if !slices.Contains(c.DelClass, x.Class) {
			e.put(unix.NFT_MSG_DELSETELEM, x.Spec(), x.Key, "", "")
		}
	}
	e.close()
	for _, x := range c.DelClass {
		b.nft(unix.NFT_MSG_DELSET, 0)
		b.str(unix.NFTA_SET_TABLE, rules.TableName)
		b.str(unix.NFTA_SET_NAME, x.Spec().Name)
		b.end()
	}
	for _, x := range c.Add {
		e.put(unix.NFT_MSG_NEWSETELEM, x.Spec(), x.Key, x.Val, x.Comment)
	}
	e.close()
	return nil
}

// Apply makes a change in one step.
func (t *Table) Apply(ctx context.Context, c rules.Change) error {
	if c.Empty() {
		return nil
	}
	b := t.batch()
	if err := t.change(b, c); err != nil {
		return err
	}
	if err := t.conn.commit(ctx, b); err != nil {
		return fmt.Errorf("change table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	return nil
}

// Wanted is what a Sync wants to be there: a rules.Builder is one.
type Wanted interface {
	All() iter.Seq[rules.Elem]
	Want(class rules.Class, key string) (rules.Elem, bool)
	Classes() []rules.Class
}

// Sync makes the table as wanted, from whatever state.
func (t *Table) Sync(ctx context.Context, w Wanted) (Synced, error) {
	// The kernel may change between reading and writing; then the write is refused and the next try
	// sees the new state.
	for i := 0; ; i++ {
		s, err := t.sync(ctx, w)
		if err == nil || i == 2 || ctx.Err() != nil || errors.Is(err, unix.EPERM) {
			return s, err
		}
	}
}

func (t *Table) sync(ctx context.Context, w Wanted) (Synced, error) {
	same, classes, err := t.readFixed()
	if err != nil {
		return Synced{}, fmt.Errorf("read table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	if !same {
		return t.replace(ctx, w)
	}
	c, err := t.diff(w, classes)
	if isNotFound(err) {
		return t.replace(ctx, w)
	}
	if err != nil {
		return Synced{}, fmt.Errorf("read elements of table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	if err := t.Apply(ctx, c); err != nil {
		// Something that cannot be repaired piece by piece.
		return t.replace(ctx, w)
	}
	return Synced{Added: len(c.Add), Deleted: len(c.Del)}, nil
}

// replace takes the table away and puts it there anew, in one step: no packet sees anything between.
func (t *Table) replace(ctx context.Context, w Wanted) (Synced, error) {
	c := rules.Change{Add: slices.Collect(w.All()), AddClass: w.Classes(), Classes: w.Classes()}
	// Set by set, so that few messages carry many elements.
	slices.SortFunc(c.Add, func(x, y rules.Elem) int {
		if x.Set != y.Set {
			return int(x.Set) - int(y.Set)
		}
		return int(x.N) - int(y.N)
	})
	b := t.batch()
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE) // so that there is one to delete
	t.table(b, unix.NFT_MSG_DELTABLE, 0)
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	if err := t.layout(b, c.AddClass); err != nil {
		return Synced{}, err
	}
	c.AddClass = nil // they are there, with the rules that use them
	if err := t.change(b, c); err != nil {
		return Synced{}, err
	}
	if err := t.conn.commit(ctx, b); err != nil {
		return Synced{}, Explain(fmt.Errorf("write table %s %s: %w", t.cfg.Family, rules.TableName, err))
	}
	return Synced{Replaced: true, Added: len(c.Add)}, nil
}

// layout appends the fixed chains and sets, and those that follow from the classes.
func (t *Table) layout(b *batch, classes []rules.Class) error {
	for i, s := range fixedSets() {
		t.addSet(b, uint32(i+1), s)
	}
	for i, c := range classes {
		t.addSet(b, uint32(1000+i), c.Spec())
	}
	chains := append(t.cfg.Variable(classes), t.cfg.Layout()...)
	for _, c := range chains {
		t.addChain(b, c)
	}
	for _, c := range chains {
		if err := t.addRules(b, c); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) table(b *batch, typ, flags uint16) {
	b.nft(typ, flags)
	b.str(unix.NFTA_TABLE_NAME, rules.TableName)
	if typ == unix.NFT_MSG_NEWTABLE {
		b.u32(unix.NFTA_TABLE_FLAGS, 0)
	}
	b.end()
}

// Delete removes the table, if it is there.
func (t *Table) Delete(ctx context.Context) error {
	b := t.batch()
	t.table(b, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	t.table(b, unix.NFT_MSG_DELTABLE, 0)
	if err := t.conn.commit(ctx, b); err != nil {
		return fmt.Errorf("delete table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	return nil
}

// Forget deletes remembered clients for which stale says so, and returns how many those were. key is what
// the client calls. The change by which the endpoint left has been made before, so that no packet adds
// such an entry again.
func (t *Table) Forget(ctx context.Context, stale func(key, endpoint string) bool) (int, error) {
	n := 0
	for _, spec := range rules.Affinity() {
		m, err := t.forgetIn(ctx, spec, stale)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (t *Table) forgetIn(ctx context.Context, spec rules.SetSpec, stale func(key, endpoint string) bool) (int, error) {
	client := rules.Addr.Len(t.cfg.Family)
	var keys []string
	err := t.readSet(spec, func(key, _, val, _ string) error {
		if stale(key[client:], val) {
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read clients with affinity: %w", err)
	}
	n := 0
	for len(keys) > 0 {
		chunk := keys[:min(len(keys), 512)]
		if err := t.forget(ctx, spec, chunk); err == nil {
			n += len(chunk)
		} else if !isNotFound(err) {
			return n, err
		} else {
			// One of them has timed out meanwhile, and with it the whole batch was refused.
			for _, k := range chunk {
				if err := t.forget(ctx, spec, []string{k}); err == nil {
					n++
				} else if !isNotFound(err) {
					return n, err
				}
			}
		}
		keys = keys[len(chunk):]
	}
	return n, nil
}

func (t *Table) forget(ctx context.Context, spec rules.SetSpec, keys []string) error {
	b := t.batch()
	e := &elems{b: b}
	for _, k := range keys {
		e.put(unix.NFT_MSG_DELSETELEM, spec, k, "", "")
	}
	e.close()
	return t.conn.commit(ctx, b)
}
