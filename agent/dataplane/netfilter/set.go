package netfilter

import (
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// verdictType and verdictLen describe a verdict as the value of a map.
const verdictType, verdictLen = 0xffffff00, 16

// fieldType returns nft's number of a field's type. The kernel stores it for nft to read.
func fieldType(fam ruleset.Family, f ruleset.Field) uint32 {
	switch f {
	case ruleset.Addr:
		if fam == ruleset.IPv6 {
			return 8
		}
		return 7
	case ruleset.Addr4:
		return 7
	case ruleset.Addr6:
		return 8
	case ruleset.Proto:
		return 12
	case ruleset.Port:
		return 13
	}
	return 19
}

// TypeOf returns nft's number of the type of a key or value with these fields, and its length.
func TypeOf(fam ruleset.Family, fields []ruleset.Field) (typ uint32, length int) {
	if isVerdict(fields) {
		return verdictType, verdictLen
	}
	for _, f := range fields {
		typ = typ<<6 | fieldType(fam, f)
		length += f.Len(fam)
	}
	return typ, length
}

// setFlags returns the flags of a set, with the pseudo flag concat.
func setFlags(s ruleset.SetSpec) uint32 {
	var f uint32
	if len(s.Val) > 0 {
		f |= unix.NFT_SET_MAP
	}
	if s.Ranges {
		f |= unix.NFT_SET_INTERVAL | setConcat
	}
	if s.Dynamic {
		f |= unix.NFT_SET_EVAL
		if !s.Permanent {
			f |= unix.NFT_SET_TIMEOUT
		}
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
	if s.Timeout > 0 {
		b.Raw(unix.NFTA_SET_TIMEOUT, string(be.AppendUint64(nil, uint64(s.Timeout.Milliseconds()))))
	}
	// nft prints values in this byte order.
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

// Elems writes elements into messages of a batch, as many into each as it holds.
type Elems struct {
	table *Table
	b     *Batch
	typ   uint16
	set   string
	list  int
}

// Elems returns a writer of elements to a batch. It must be closed before anything else is appended to the batch.
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

// Add appends a new element. The key of a range is its first key followed by its last.
func (e *Elems) Add(s ruleset.SetSpec, key, val, comment string) {
	e.put(unix.NFT_MSG_NEWSETELEM, s, key, val, comment)
}

// Delete appends the removal of an element.
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
			comment = comment[:min(len(comment), maxComment-1)]
			b.Raw(unix.NFTA_SET_ELEM_USERDATA, string([]byte{elemComment, byte(len(comment) + 1)})+comment+"\x00")
		}
	}
	b.Unnest(el)
}

// isVerdict reports whether a map gives verdicts.
func isVerdict(val []ruleset.Field) bool { return len(val) == 1 && val[0] == ruleset.ChainName }

// jumpCode is NFT_JUMP as the kernel takes it.
const jumpCode = 0xfffffffd

// DeleteSet appends the removal of a set, with its elements, that no rule uses.
func (t *Table) DeleteSet(b *Batch, set string) {
	b.Msg(unix.NFT_MSG_DELSET, 0)
	b.Str(unix.NFTA_SET_TABLE, t.Name)
	b.Str(unix.NFTA_SET_NAME, set)
	b.End()
}
