package netfilter

import (
	"testing"

	"golang.org/x/sys/unix"
)

func FuzzMessages(f *testing.F) {
	b := newBatch(2)
	b.Msg(unix.NFT_MSG_NEWSETELEM, 0)
	b.Str(1, "umiak-test")
	b.End()
	data, _ := b.finish()
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		touches(data, []string{"umiak-test"}, 7)
		_ = Messages(data, func(m Message) error {
			_ = parseError(m)
			return parseElems(m.Data, 4, func(_, _, _, _ string) error { return nil })
		})
	})
}
