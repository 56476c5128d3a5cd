package netfilter

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// ReadChains reads the digest of each chain, as Digest makes it. There is no table if there are no chains.
func (t *Table) ReadChains() (map[string]uint64, error) {
	chains, err := t.readChains()
	if err != nil || len(chains) == 0 {
		return nil, err
	}
	out := make(map[string]uint64, len(chains))
	for name, c := range chains {
		out[name] = digestOf(name, c.hook, c.rules)
	}
	return out, nil
}

// Begin reads, for each chain, whether r is its first rule. There is no table if there are no chains.
func (t *Table) Begin(r ruleset.Rule) (map[string]bool, error) {
	chains, err := t.readChains()
	out := make(map[string]bool, len(chains))
	for name, c := range chains {
		out[name] = len(c.rules) > 0 && c.rules[0] == ruleHash(r)
	}
	return out, err
}

// chain is what identifies a chain in the kernel.
type chain struct {
	hook  ruleset.Hook
	rules []uint64 // see ruleHash; 0 is a stranger's
}

func (t *Table) readChains() (map[string]*chain, error) {
	fam := uint8(t.Family)
	chains := map[string]*chain{}
	err := t.Conn.Dump(fam, unix.NFT_MSG_GETCHAIN, func(b *Batch) {}, func(m Message) error {
		var name, table, typ string
		c := &chain{}
		accept := true
		err := Attrs(m.Data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_CHAIN_TABLE:
				table = CStr(v)
			case unix.NFTA_CHAIN_NAME:
				name = CStr(v)
			case unix.NFTA_CHAIN_TYPE:
				typ = CStr(v)
			case unix.NFTA_CHAIN_POLICY:
				accept = len(v) == 4 && be.Uint32(v) == 1
			case unix.NFTA_CHAIN_HOOK:
				return Attrs(v, func(at uint16, v []byte) error {
					if len(v) != 4 {
						return nil
					}
					switch at {
					case unix.NFTA_HOOK_HOOKNUM:
						for n, num := range hooks {
							if num == be.Uint32(v) {
								c.hook.Name = n
							}
						}
					case unix.NFTA_HOOK_PRIORITY:
						c.hook.Priority = int32(be.Uint32(v))
					}
					return nil
				})
			}
			return nil
		})
		if err != nil || table != t.Name || m.Family != fam {
			return err
		}
		c.hook.Type = typ
		if !accept {
			c.hook.Type = "not accept"
		}
		chains[name] = c
		return nil
	})
	if err != nil || len(chains) == 0 {
		return nil, err
	}
	err = t.Conn.Dump(fam, unix.NFT_MSG_GETRULE, func(b *Batch) { b.Str(unix.NFTA_RULE_TABLE, t.Name) }, func(m Message) error {
		var table, name string
		var hash uint64
		err := Attrs(m.Data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_RULE_TABLE:
				table = CStr(v)
			case unix.NFTA_RULE_CHAIN:
				name = CStr(v)
			case unix.NFTA_RULE_USERDATA:
				if len(v) == 10 && v[0] == ruleDigest {
					hash = be.Uint64(v[2:])
				}
			}
			return nil
		})
		if err != nil || table != t.Name || m.Family != fam {
			return err
		}
		if c := chains[name]; c != nil {
			c.rules = append(c.rules, hash)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return chains, nil
}

// Shape is what identifies a set beside its name.
type Shape struct{ flags, keyType, keyLen, dataType, dataLen uint32 }

// Shape is how a set of this kind looks like in this table.
func (t *Table) Shape(s ruleset.SetSpec) Shape {
	kt, kl := TypeOf(t.Family, s.Key)
	dt, dl := TypeOf(t.Family, s.Val)
	return Shape{flags: setFlags(s), keyType: kt, keyLen: uint32(kl), dataType: dt, dataLen: uint32(dl)}
}

// ReadSets reads which sets there are.
func (t *Table) ReadSets() (map[string]Shape, error) {
	got := map[string]Shape{}
	fam := uint8(t.Family)
	err := t.Conn.Dump(fam, unix.NFT_MSG_GETSET, func(b *Batch) { b.Str(unix.NFTA_SET_TABLE, t.Name) }, func(m Message) error {
		var name string
		var s Shape
		err := Attrs(m.Data, func(at uint16, v []byte) error {
			if at == unix.NFTA_SET_NAME {
				name = CStr(v)
			}
			if len(v) != 4 {
				return nil
			}
			switch n := be.Uint32(v); at {
			case unix.NFTA_SET_FLAGS:
				s.flags = n
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = n
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = n
			case unix.NFTA_SET_DATA_TYPE:
				s.dataType = n
			case unix.NFTA_SET_DATA_LEN:
				s.dataLen = n
			}
			return nil
		})
		got[name] = s
		return err
	})
	return got, err
}

// ReadSet calls f for each element: its key, where a range ends, its value and its
// comment.
func (t *Table) ReadSet(s ruleset.SetSpec, f func(key, end, val, comment string) error) error {
	fam := uint8(t.Family)
	_, keyLen := TypeOf(t.Family, s.Key)
	return t.Conn.Dump(fam, unix.NFT_MSG_GETSETELEM, func(b *Batch) {
		b.Str(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
		b.Str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	}, func(m Message) error { return parseElems(m.Data, keyLen, f) })
}

func parseElems(data []byte, keyLen int, f func(key, end, val, comment string) error) error {
	return Attrs(data, func(at uint16, list []byte) error {
		if at != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return Attrs(list, func(_ uint16, el []byte) error {
			var key, end, val, comment string
			err := Attrs(el, func(at uint16, v []byte) error {
				switch at {
				case unix.NFTA_SET_ELEM_KEY:
					key = value(v)
				case setElemKeyEnd:
					end = value(v)
				case unix.NFTA_SET_ELEM_DATA:
					val = value(v)
				case unix.NFTA_SET_ELEM_USERDATA:
					if len(v) > 2 && v[0] == elemComment {
						comment = CStr(v[2:])
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			if len(key) != keyLen {
				return fmt.Errorf("parse element: key of %d bytes, not %d", len(key), keyLen)
			}
			return f(key, end, val, comment)
		})
	})
}

func value(b []byte) (out string) {
	_ = Attrs(b, func(at uint16, v []byte) error {
		switch at {
		case unix.NFTA_DATA_VALUE:
			out = string(v)
		case unix.NFTA_DATA_VERDICT:
			jump := false
			return Attrs(v, func(at uint16, v []byte) error {
				switch at {
				case unix.NFTA_VERDICT_CODE:
					jump = len(v) == 4 && be.Uint32(v) == jumpCode
				case unix.NFTA_VERDICT_CHAIN:
					if jump {
						out = CStr(v)
					}
				}
				return nil
			})
		}
		return nil
	})
	return out
}
