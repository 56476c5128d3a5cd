package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Prefix begins the name of every table of umiak.
const Prefix = "umiak-"

// Remove deletes the tables with one of the names, of all families, and returns the names of those that existed. It is
// what a part calls that starts without a table, what `umiak cleanup` and `umiak uninstall` call, and may be called at
// any time and twice.
func Remove(ctx context.Context, names ...string) ([]string, error) {
	return remove(ctx, func(name string) bool { return slices.Contains(names, name) })
}

// RemoveAll deletes all tables of umiak, of this and of other releases, and returns the names of those that existed.
func RemoveAll(ctx context.Context) ([]string, error) {
	return remove(ctx, func(name string) bool { return strings.HasPrefix(name, Prefix) })
}

func remove(ctx context.Context, match func(name string) bool) ([]string, error) {
	conn, err := Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	return conn.remove(ctx, match)
}

func (c *Conn) remove(ctx context.Context, match func(name string) bool) (removed []string, err error) {
	var found []Table
	err = c.Dump(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, func(*Batch) {}, func(m Message) error {
		return Attrs(m.Data, func(at uint16, v []byte) error {
			if at == unix.NFTA_TABLE_NAME && match(cString(v)) {
				found = append(found, Table{Conn: c, Family: ruleset.Family(m.Family), Name: cString(v)})
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	b := newBatch(unix.NFPROTO_UNSPEC)
	for _, t := range found {
		b.family = uint8(t.Family)
		t.AddTable(b) // so that there is one to delete if somebody else does the same now
		t.table(b, unix.NFT_MSG_DELTABLE, 0)
		removed = append(removed, t.Name)
	}
	if err := c.Commit(ctx, b); err != nil {
		return nil, fmt.Errorf("delete nftables tables %s: %w", strings.Join(removed, ", "), err)
	}
	return removed, nil
}

// Remove deletes the tables with one of the names, of all families. The changes are those of this Conn: a Watcher of
// its own does not report them.
func (c *Conn) Remove(ctx context.Context, names ...string) error {
	_, err := c.remove(ctx, func(name string) bool { return slices.Contains(names, name) })
	return err
}
