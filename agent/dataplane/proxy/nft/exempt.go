package nft

import (
	"context"
	"fmt"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Exempt lets what umiak itself sends to servers pass a table that exists, also one of an older release, whose chains
// do not begin with that rule. Everything else stays until Sync, which needs to know the Services, and for that a
// server.
func (t *Table) Exempt(ctx context.Context) error {
	begins, err := t.Begin(rules.OwnPasses)
	if err != nil {
		return fmt.Errorf("read table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	var chains []string
	for _, c := range rules.OwnChains {
		if begun, there := begins[c]; there && !begun {
			chains = append(chains, c)
		}
	}
	if len(chains) == 0 {
		return nil
	}
	return t.Change(ctx, func(b *netfilter.Batch) error {
		for _, c := range chains {
			if err := t.InsertRule(b, c, rules.OwnPasses); err != nil {
				return err
			}
		}
		return nil
	})
}
