package nft

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/proxy/rules"
)

// readFixed reports whether the table is one that we would write for the classes that it has: sets as
// such, chains and rules. Elements are not looked at.
func (t *Table) readFixed() (same bool, classes []rules.Class, err error) {
	type chain struct {
		hook  rules.Hook
		rules []uint64
	}
	fam := uint8(t.cfg.Family)
	chains := map[string]*chain{}
	ours := false
	err = t.conn.dump(fam, unix.NFT_MSG_GETCHAIN, func(b *batch) {}, func(m message) error {
		var name, table, typ string
		c := &chain{}
		accept := true
		err := attrs(m.data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_CHAIN_TABLE:
				table = cstr(v)
			case unix.NFTA_CHAIN_NAME:
				name = cstr(v)
			case unix.NFTA_CHAIN_TYPE:
				typ = cstr(v)
			case unix.NFTA_CHAIN_POLICY:
				accept = len(v) == 4 && be.Uint32(v) == 1
			case unix.NFTA_CHAIN_HOOK:
				return attrs(v, func(at uint16, v []byte) error {
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
		if err != nil || table != rules.TableName || m.family != fam {
			return err
		}
		ours = true
		c.hook.Type = typ
		if !accept {
			c.hook.Type = "not accept"
		}
		chains[name] = c
		return nil
	})
	if err != nil || !ours {
		return false, nil, err
	}
	err = t.conn.dump(fam, unix.NFT_MSG_GETRULE, func(b *batch) { b.str(unix.NFTA_RULE_TABLE, rules.TableName) }, func(m message) error {
		var table, name string
		var hash uint64
		err := attrs(m.data, func(at uint16, v []byte) error {
			switch at {
			case unix.NFTA_RULE_TABLE:
				table = cstr(v)
			case unix.NFTA_RULE_CHAIN:
				name = cstr(v)
			case unix.NFTA_RULE_USERDATA:
				if len(v) == 10 && v[0] == ruleDigest {
					hash = be.Uint64(v[2:])
				}
			}
			return nil
		})
		if err != nil || table != rules.TableName || m.family != fam {
			return err
		}
		if c := chains[name]; c != nil {
			c.rules = append(c.rules, hash)
		}
		return nil
	})
	if err != nil {
		return false, nil, err
	}
	classes, same, err = t.readSets()
	if err != nil || !same {
		return false, nil, err
	}
	want := maps.Clone(t.digest)
	for _, c := range t.cfg.Variable(classes) {
		want[c.Name] = digest(c)
	}
	if len(chains) != len(want) {
		return false, nil, nil
	}
	for name, c := range chains {
		if digestOf(name, c.hook, c.rules) != want[name] {
			return false, nil, nil
		}
	}
	return true, classes, nil
}

type shape struct{ flags, keyType, keyLen, dataType, dataLen uint32 }

func (t *Table) shapeOf(s rules.SetSpec) shape {
	kt, kl := typeOf(t.cfg.Family, s.Key)
	dt, dl := typeOf(t.cfg.Family, s.Val)
	return shape{flags: setFlags(s), keyType: kt, keyLen: uint32(kl), dataType: dt, dataLen: uint32(dl)}
}

// readSets reads which classes there are, and whether all sets are as they should be.
func (t *Table) readSets() (classes []rules.Class, same bool, err error) {
	got := map[string]shape{}
	fam := uint8(t.cfg.Family)
	err = t.conn.dump(fam, unix.NFT_MSG_GETSET, func(b *batch) { b.str(unix.NFTA_SET_TABLE, rules.TableName) }, func(m message) error {
		var name string
		var s shape
		err := attrs(m.data, func(at uint16, v []byte) error {
			if at == unix.NFTA_SET_NAME {
				name = cstr(v)
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
	if err != nil {
		return nil, false, err
	}
	for _, s := range fixedSets() {
		if g, ok := got[s.Name]; !ok || g != t.shapeOf(s) {
			return nil, false, nil
		}
		delete(got, s.Name)
	}
	for name, g := range got {
		c, ok := rules.ParseClass(name)
		if !ok || g != t.shapeOf(c.Spec()) {
			return nil, false, nil
		}
		classes = append(classes, c)
	}
	slices.SortFunc(classes, rules.Class.Compare)
	return classes, true, nil
}

// readSet calls f for each element: its key, where a range ends, its value and its
// comment.
func (t *Table) readSet(s rules.SetSpec, f func(key, end, val, comment string) error) error {
	fam := uint8(t.cfg.Family)
	_, keyLen := typeOf(t.cfg.Family, s.Key)
	return t.conn.dump(fam, unix.NFT_MSG_GETSETELEM, func(b *batch) {
		b.str(unix.NFTA_SET_ELEM_LIST_TABLE, rules.TableName)
		b.str(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	}, func(m message) error { return parseElems(m.data, keyLen, f) })
}

func parseElems(data []byte, keyLen int, f func(key, end, val, comment string) error) error {
	return attrs(data, func(at uint16, list []byte) error {
		if at != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return attrs(list, func(_ uint16, el []byte) error {
			var key, end, val, comment string
			err := attrs(el, func(at uint16, v []byte) error {
				switch at {
				case unix.NFTA_SET_ELEM_KEY:
					key = value(v)
				case setElemKeyEnd:
					end = value(v)
				case unix.NFTA_SET_ELEM_DATA:
					val = value(v)
				case unix.NFTA_SET_ELEM_USERDATA:
					if len(v) > 2 && v[0] == elemComment {
						comment = cstr(v[2:])
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
	_ = attrs(b, func(at uint16, v []byte) error {
		switch at {
		case unix.NFTA_DATA_VALUE:
			out = string(v)
		}
		return nil
	})
	return out
}

// diff reads the elements and says what to change so that they are as wanted.
func (t *Table) diff(w Wanted, classes []rules.Class) (rules.Change, error) {
	c := rules.Change{Classes: w.Classes()}
	there := map[rules.Class]int{} // how many wanted elements of each class the kernel has
	read := func(class rules.Class, f func(have rules.Elem)) error {
		return t.readSet(class.Spec(), func(key, end, val, comment string) error {
			f(rules.Elem{Class: class, Key: key + end, Val: val, Comment: comment})
			return nil
		})
	}
	for id := range rules.NumSets {
		if !id.Classed() {
			classes = append(classes, rules.Class{Set: id})
		}
	}
	for _, class := range classes {
		if class.Set.Classed() && !slices.Contains(c.Classes, class) {
			c.DelClass = append(c.DelClass, class)
			continue
		}
		err := read(class, func(have rules.Elem) {
			if want, ok := w.Want(class, have.Key); ok && clip(want) == have {
				there[class]++
				return
			}
			c.Del = append(c.Del, have)
		})
		if err != nil {
			return c, err
		}
	}
	for _, class := range c.Classes {
		if !slices.Contains(classes, class) {
			c.AddClass = append(c.AddClass, class)
		}
	}
	// Mostly nothing is missing, so what is there was only counted.
	missing := map[rules.Class]int{}
	for e := range w.All() {
		missing[e.Class]++
	}
	maps.DeleteFunc(missing, func(class rules.Class, n int) bool { return there[class] == n })
	if len(missing) == 0 {
		return c, nil
	}
	have := map[rules.Elem]bool{}
	for class := range missing {
		if there[class] == 0 {
			continue
		}
		if err := read(class, func(e rules.Elem) { have[e] = true }); err != nil {
			return c, err
		}
	}
	for e := range w.All() {
		if missing[e.Class] > 0 && !have[clip(e)] {
			c.Add = append(c.Add, e)
		}
	}
	slices.SortFunc(c.Add, func(x, y rules.Elem) int { return x.Class.Compare(y.Class) })
	return c, nil
}

// clip shortens the comment to what the kernel keeps.
func clip(e rules.Elem) rules.Elem {
	e.Comment = e.Comment[:min(len(e.Comment), maxElemComment-1)]
	return e
}
