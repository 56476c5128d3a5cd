package netfilter

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Begin reports for each chain of the table whether r is its first rule. It returns an empty map if the table has no
// chains or does not exist.
func (t *Table) Begin(r ruleset.Rule) (map[string]bool, error) {
	chains, err := t.readChains()
	out := make(map[string]bool, len(chains))
	for name, c := range chains {
		out[name] = len(c.rules) > 0 && c.rules[0] == Digest(r)
	}
	return out, err
}

// Chains returns the names of the table's chains.
func (t *Table) Chains() ([]string, error) {
	hooks, err := t.readHooks()
	return slices.Collect(maps.Keys(hooks)), err
}

// chain is a chain as read from the kernel.
type chain struct {
	hook  ruleset.Hook
	rules []uint64 // digests; 0 for a rule that has none
}

// holds reports whether the chain has the rules of want.
func (c *chain) holds(want ruleset.Chain) bool {
	hashes := make([]uint64, 0, len(want.Rules))
	for _, r := range want.Rules {
		hashes = append(hashes, Digest(r))
	}
	have := c.rules
	if want.Unordered {
		have = slices.Sorted(slices.Values(have))
		slices.Sort(hashes)
	}
	return slices.Equal(have, hashes)
}

// hooked reports whether the chain is at the hook of want, if that has one.
func (c *chain) hooked(want ruleset.Chain) bool {
	if want.Hook == nil {
		return c.hook == ruleset.Hook{}
	}
	return c.hook == *want.Hook
}

// readChains returns the table's chains by name.
func (t *Table) readChains() (map[string]*chain, error) {
	hooks, err := t.readHooks()
	if err != nil || len(hooks) == 0 {
		return nil, err
	}
	chains := make(map[string]*chain, len(hooks))
	for name, h := range hooks {
		chains[name] = &chain{hook: h}
	}
	err = t.readRules("", func(name string, r Rule) {
		if c := chains[name]; c != nil {
			c.rules = append(c.rules, r.Digest)
		}
	})
	return chains, err
}

// notAccept is the type of a hook whose chain drops what reaches its end, which no chain of umiak does.
const notAccept = "not accept"

// readHooks returns the hook of each of the table's chains, the zero Hook for chains that others jump to.
func (t *Table) readHooks() (map[string]ruleset.Hook, error) {
	fam := uint8(t.Family)
	out := map[string]ruleset.Hook{}
	err := t.Conn.Dump(fam, unix.NFT_MSG_GETCHAIN, func(*Batch) {}, func(m Message) error {
		var name, table string
		var hook ruleset.Hook
		accept := true
		err := Attrs(m.Data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_CHAIN_TABLE:
				table = cString(v)
			case unix.NFTA_CHAIN_NAME:
				name = cString(v)
			case unix.NFTA_CHAIN_TYPE:
				hook.Type = cString(v)
			case unix.NFTA_CHAIN_POLICY:
				accept = len(v) == 4 && be.Uint32(v) == 1
			case unix.NFTA_CHAIN_HOOK:
				return t.readHook(v, &hook)
			}
			return nil
		})
		if err != nil || table != t.Name || m.Family != fam {
			return err
		}
		if !accept {
			hook.Type = notAccept
		}
		out[name] = hook
		return nil
	})
	return out, err
}

func (t *Table) readHook(b []byte, hook *ruleset.Hook) error {
	return Attrs(b, func(at uint16, v []byte) error {
		switch {
		case at == hookDevice:
			hook.Device = cString(v)
		case len(v) != 4:
		case at == unix.NFTA_HOOK_HOOKNUM:
			for name, num := range hooks {
				if num == be.Uint32(v) && (name == ingress) == (t.Family == ruleset.Netdev) {
					hook.Name = name
				}
			}
		case at == unix.NFTA_HOOK_PRIORITY:
			hook.Priority = int32(be.Uint32(v))
		}
		return nil
	})
}

// Rule is a rule as read from the kernel.
type Rule struct {
	Handle uint64
	// Digest is 0 for a rule that umiak has not written.
	Digest uint64
	// Comment is the text of its ruleset.Comment.
	Comment string
	// Packets is the count of its first ruleset.Count.
	Packets uint64
}

// Rules returns the rules of a chain, none if there is no such chain.
func (t *Table) Rules(chain string) ([]Rule, error) {
	var out []Rule
	err := t.readRules(chain, func(_ string, r Rule) { out = append(out, r) })
	if IsNotFound(err) {
		return nil, nil
	}
	return out, err
}

// readRules calls f for each rule of a chain, or of all chains if chain is empty.
func (t *Table) readRules(chain string, f func(chain string, r Rule)) error {
	fam := uint8(t.Family)
	return t.Conn.Dump(fam, unix.NFT_MSG_GETRULE, func(b *Batch) {
		b.Str(unix.NFTA_RULE_TABLE, t.Name)
		if chain != "" {
			b.Str(unix.NFTA_RULE_CHAIN, chain)
		}
	}, func(m Message) error {
		var table, name string
		var r Rule
		err := Attrs(m.Data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_RULE_TABLE:
				table = cString(v)
			case unix.NFTA_RULE_CHAIN:
				name = cString(v)
			case unix.NFTA_RULE_HANDLE:
				if len(v) == 8 {
					r.Handle = be.Uint64(v)
				}
			case unix.NFTA_RULE_USERDATA:
				r.parseUserData(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				if chain != "" { // a whole table's rules are read for their digests
					return r.parseExpressions(v)
				}
			}
			return nil
		})
		if err == nil && table == t.Name && m.Family == fam && (chain == "" || name == chain) {
			f(name, r)
		}
		return err
	})
}

// parseUserData reads what userData has written: a type, a length and a value each.
func (r *Rule) parseUserData(b []byte) {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		v := b[2 : 2+int(b[1])]
		switch {
		case b[0] == ruleComment:
			r.Comment = cString(v)
		case b[0] == ruleDigest && len(v) == 8:
			r.Digest = be.Uint64(v)
		}
		b = b[2+len(v):]
	}
}

// parseExpressions reads the packets of a rule's first counter.
func (r *Rule) parseExpressions(list []byte) error {
	counted := false
	return Attrs(list, func(_ uint16, e []byte) error {
		name := ""
		return Attrs(e, func(at uint16, v []byte) error {
			switch {
			case at == unix.NFTA_EXPR_NAME:
				name = cString(v)
			case at == unix.NFTA_EXPR_DATA && name == "counter" && !counted:
				counted = true
				return Attrs(v, func(at uint16, v []byte) error {
					if at == unix.NFTA_COUNTER_PACKETS && len(v) == 8 {
						r.Packets = be.Uint64(v)
					}
					return nil
				})
			}
			return nil
		})
	})
}

// Shape holds the properties in which two sets of the same name may differ.
type Shape struct{ flags, keyType, keyLen, dataType, dataLen uint32 }

// Shape returns the shape of a set in this table.
func (t *Table) Shape(s ruleset.SetSpec) Shape {
	kt, kl := TypeOf(t.Family, s.Key)
	dt, dl := TypeOf(t.Family, s.Val)
	return Shape{flags: setFlags(s), keyType: kt, keyLen: uint32(kl), dataType: dt, dataLen: uint32(dl)}
}

// ReadSets returns the table's sets by name.
func (t *Table) ReadSets() (map[string]Shape, error) {
	got := map[string]Shape{}
	fam := uint8(t.Family)
	err := t.Conn.Dump(fam, unix.NFT_MSG_GETSET, func(b *Batch) { b.Str(unix.NFTA_SET_TABLE, t.Name) },
		func(m Message) error {
			var name string
			var s Shape
			err := Attrs(m.Data, func(at uint16, v []byte) error {
				if at == unix.NFTA_SET_NAME {
					name = cString(v)
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

// ReadSet calls f for each element of a set with its key, the last key of a range, its value and its comment.
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
						comment = cString(v[2:])
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
						out = cString(v)
					}
				}
				return nil
			})
		}
		return nil
	})
	return out
}
