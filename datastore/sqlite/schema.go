package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/k3s-io/kine/pkg/server"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

const (
	applicationID = 0x554d494b // "UMIK", at offset 68 of the file
	schemaVersion = 1          // user_version, at offset 60

	deleted = 1 // flag of a tombstone
)

// schema creates the tables. The value is the last column, so that reading the other columns touches no overflow
// page. The index has all columns that decide which row of a key is current, so that counting reads only the index.
var schema = []string{
	`CREATE TABLE log (
		rev        INTEGER PRIMARY KEY,
		key        BLOB    NOT NULL,
		create_rev INTEGER NOT NULL,
		prev_rev   INTEGER NOT NULL,
		version    INTEGER NOT NULL,
		lease      INTEGER NOT NULL,
		flags      INTEGER NOT NULL,
		sum        INTEGER NOT NULL,
		value      BLOB
	)`,
	`CREATE UNIQUE INDEX log_key ON log (key, rev, flags)`,
	`CREATE INDEX log_lease ON log (rev) WHERE lease > 0`,
	`CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID`,
}

// Names in the table meta.
const (
	metaFloor   = "floor"   // revision up to which none is assigned again
	metaCompact = "compact" // revision below which history is not readable
	metaSwept   = "swept"   // revision up to which compacted rows are removed
	metaEpoch   = "epoch"   // number of starts
)

// row is one revision of a key.
type row struct {
	rev, create, prev, version, lease, flags, sum int64
	key, value                                    []byte
}

// columns are the columns of a row but for sum and value. The checksum can be verified only with the value.
const columns = `l.rev, l.key, l.create_rev, l.prev_rev, l.version, l.lease, l.flags`

// insertRow inserts a row, whose fields are its arguments.
const insertRow = `INSERT INTO log (rev, key, create_rev, prev_rev, version, lease, flags, sum, value)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers the whole row, so that a torn or altered page is not served as data.
func (r *row) checksum() int64 {
	var b [7 * 8]byte
	for i, v := range [...]int64{r.rev, r.create, r.prev, r.version, r.lease, r.flags, int64(len(r.key))} {
		binary.LittleEndian.PutUint64(b[i*8:], uint64(v))
	}
	c := crc32.Update(0, castagnoli, b[:])
	return int64(crc32.Update(crc32.Update(c, castagnoli, r.key), castagnoli, r.value))
}

func (r *row) kv() *server.KeyValue {
	return &server.KeyValue{Key: string(r.key), Value: r.value, Version: r.version, CreateRevision: r.create,
		ModRevision: r.rev, Lease: r.lease}
}

// dsn returns the data source name of a file with the pragmas that every connection needs. cache_size bounds the
// memory; mmap is off because a read error of the disk would then be a SIGBUS.
func dsn(path string, pragmas ...string) string {
	q := url.Values{}
	for _, p := range append([]string{"busy_timeout(10000)", "mmap_size(0)", "temp_store(MEMORY)",
		"cell_size_check(1)"}, pragmas...) {
		q.Add("_pragma", p)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// create creates an empty database, which appears at path only when it is complete. fill, if not nil, writes rows.
func create(ctx context.Context, path string, fill func(*sql.Conn) error) (err error) {
	tmp := path + ".new"
	for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
		if err := os.Remove(tmp + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an unfinished file: %w", classify(err))
		}
	}
	if err := touch(tmp); err != nil { // so that its mode is 0600 from the start
		return fmt.Errorf("create %s: %w", tmp, classify(err))
	}
	db, err := sql.Open("sqlite", dsn(tmp, "page_size(4096)", "auto_vacuum(INCREMENTAL)", "journal_mode(DELETE)",
		"synchronous(FULL)"))
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // closed with its error below, where it matters
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, classify(err))
	}
	statements := append([]string{"BEGIN IMMEDIATE"}, schema...)
	statements = append(statements, fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
		"INSERT INTO meta VALUES ('floor', 1), ('compact', 0), ('swept', 0), ('epoch', 0)")
	for _, s := range statements {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("create %s: %w", tmp, classify(err))
		}
	}
	if fill != nil {
		if err := fill(conn); err != nil {
			return fmt.Errorf("fill %s: %w", tmp, classify(err))
		}
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("create %s: %w", tmp, classify(err))
	}
	if err := errors.Join(conn.Close(), db.Close()); err != nil {
		return fmt.Errorf("create %s: %w", tmp, classify(err))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("create %s: %w", path, classify(err))
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// touch creates a file with mode 0600.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// header has fields of the header of a SQLite file, its first 100 bytes.
type header struct {
	pageSize      int
	pages         uint32
	applicationID uint32
	userVersion   uint32
}

// parseHeader parses the start of a SQLite file.
func parseHeader(b []byte) (header, error) {
	if len(b) < 100 || string(b[:16]) != "SQLite format 3\x00" {
		return header{}, errors.New("the file does not start as an SQLite database")
	}
	h := header{pageSize: int(binary.BigEndian.Uint16(b[16:])), pages: binary.BigEndian.Uint32(b[28:]),
		userVersion: binary.BigEndian.Uint32(b[60:]), applicationID: binary.BigEndian.Uint32(b[68:])}
	if h.pageSize == 1 {
		h.pageSize = 65536
	}
	if h.pageSize < 512 || h.pageSize&(h.pageSize-1) != 0 {
		return header{}, fmt.Errorf("the page size %d is impossible", h.pageSize)
	}
	return h, nil
}

// readHeader reads the header of a file. It must not be called while SQLite has the file open in this
// process: closing any descriptor of it would drop SQLite's locks.
func readHeader(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	b := make([]byte, 100)
	if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return header{}, err
	}
	return parseHeader(b)
}
