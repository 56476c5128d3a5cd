package netfilter

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var be = binary.BigEndian
var ne = binary.NativeEndian

// maxNested is the largest size of an attribute in bytes; its length field has 16 bits.
const maxNested = 60 << 10

// Batch is a buffer of netlink messages. Attributes are appended in place; nested ones are closed by
// writing their length afterwards.
type Batch struct {
	b      []byte
	family uint8
	seq    uint32
	msg    int // where the open message starts
	last   int // where the last message of nf_tables starts
}

// newBatch begins a batch.
func newBatch(family uint8) *Batch {
	t := &Batch{family: family, last: -1}
	t.begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST)
	be.PutUint16(t.b[t.msg+18:], unix.NFNL_SUBSYS_NFTABLES)
	t.b[t.msg+16] = 0
	t.End()
	return t
}

func (t *Batch) begin(typ uint16, flags uint16) {
	t.msg = len(t.b)
	t.seq++
	t.b = append(t.b, 0, 0, 0, 0)
	t.b = ne.AppendUint16(t.b, typ)
	t.b = ne.AppendUint16(t.b, flags)
	t.b = ne.AppendUint32(t.b, t.seq)
	t.b = append(t.b, 0, 0, 0, 0, t.family, unix.NFNETLINK_V0, 0, 0)
}

// End closes the open message.
func (t *Batch) End() { ne.PutUint32(t.b[t.msg:], uint32(len(t.b)-t.msg)) }

// Msg begins a message of nf_tables.
func (t *Batch) Msg(typ uint16, flags uint16) {
	t.begin(unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|flags)
	t.last = t.msg
}

// Empty reports whether there is nothing to send.
func (t *Batch) Empty() bool { return t.last < 0 }

// finish closes the batch; only its last message asks for an acknowledgement. Messages that the kernel
// refuses are answered whether they ask or not.
func (t *Batch) finish() (data []byte, lastSeq uint32) {
	ne.PutUint16(t.b[t.last+6:], ne.Uint16(t.b[t.last+6:])|unix.NLM_F_ACK)
	lastSeq = ne.Uint32(t.b[t.last+8:])
	t.begin(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST)
	be.PutUint16(t.b[t.msg+18:], unix.NFNL_SUBSYS_NFTABLES)
	t.b[t.msg+16] = 0
	t.End()
	return t.b, lastSeq
}

func (t *Batch) pad() {
	for len(t.b)%4 != 0 {
		t.b = append(t.b, 0)
	}
}

func (t *Batch) attr(typ uint16, n int) {
	t.b = ne.AppendUint16(t.b, uint16(4+n))
	t.b = ne.AppendUint16(t.b, typ)
}

// Str appends a string with its end.
func (t *Batch) Str(typ uint16, s string) {
	t.attr(typ, len(s)+1)
	t.b = append(append(t.b, s...), 0)
	t.pad()
}

// Raw appends bytes.
func (t *Batch) Raw(typ uint16, s string) {
	t.attr(typ, len(s))
	t.b = append(t.b, s...)
	t.pad()
}

// U32 appends a number in network byte order.
func (t *Batch) U32(typ uint16, v uint32) {
	t.attr(typ, 4)
	t.b = be.AppendUint32(t.b, v)
}

// Nest opens an attribute that holds others; Unnest closes it.
func (t *Batch) Nest(typ uint16) int {
	at := len(t.b)
	t.attr(typ|unix.NLA_F_NESTED, 0)
	return at
}

// Unnest closes what Nest opened.
func (t *Batch) Unnest(at int) { ne.PutUint16(t.b[at:], uint16(len(t.b)-at)) }

// Attrs calls f for each attribute in b. It never reads beyond b, whatever the lengths in it say.
func Attrs(b []byte, f func(typ uint16, v []byte) error) error {
	for len(b) >= 4 {
		n := int(ne.Uint16(b))
		if n < 4 || n > len(b) {
			return fmt.Errorf("parse netlink attribute: length %d of %d", n, len(b))
		}
		if err := f(ne.Uint16(b[2:])&nlaTypeMask, b[4:n]); err != nil {
			return err
		}
		n = (n + 3) &^ 3
		if n >= len(b) {
			break
		}
		b = b[n:]
	}
	return nil
}

// Message is a netlink message of nf_tables: its type without the subsystem, and its attributes.
type Message struct {
	Type   uint16
	Flags  uint16
	Seq    uint32
	PID    uint32
	Family uint8
	Data   []byte
}

// Messages calls f for each message in b.
func Messages(b []byte, f func(Message) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(ne.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return fmt.Errorf("parse netlink message: length %d of %d", n, len(b))
		}
		m := Message{Type: ne.Uint16(b[4:]), Flags: ne.Uint16(b[6:]), Seq: ne.Uint32(b[8:]), PID: ne.Uint32(b[12:]),
			Data: b[16:n]}
		if m.Type>>8 == unix.NFNL_SUBSYS_NFTABLES {
			if len(m.Data) < 4 {
				return fmt.Errorf("parse nf_tables message: %d bytes", n)
			}
			m.Type &= 0xff
			m.Family, m.Data = m.Data[0], m.Data[4:]
		} else {
			m.Type |= control
		}
		if err := f(m); err != nil {
			return err
		}
		n = (n + 3) &^ 3
		if n >= len(b) {
			break
		}
		b = b[n:]
	}
	return nil
}

// nlaTypeMask is NLA_TYPE_MASK: without the flags "nested" and "network byte order".
const nlaTypeMask = 0x3fff

// control marks the types of messages that are netlink's own: error and done.
const control = 0x8000

// cString is a string up to its end.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
