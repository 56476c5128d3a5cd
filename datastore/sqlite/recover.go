package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/listing"
)

const (
	// revisionJump is added to the newest readable revision of a file that has lost some, so that the next revisions
	// are newer than all that clients have seen, and they list again.
	revisionJump = 1_000_000
	// epochGuess is the number of starts of a file whose epoch cannot be read.
	epochGuess = 1 << 15
	maxNamed   = 100 // lost keys that a report names
)

// Recovery is the report on a damaged file.
type Recovery struct {
	At        time.Time `json:"at"`
	Reason    string    `json:"reason"`
	Kept      string    `json:"kept"` // folder with the damaged files
	Rows      int64     `json:"rows"` // revisions copied into the new file
	LostRows  int64     `json:"lostRows"`
	Lost      []string  `json:"lost,omitempty"`      // keys whose newest revision is lost, at most maxNamed
	Uncertain string    `json:"uncertain,omitempty"` // why more may be lost; empty if the report is complete
}

// recover copies the readable rows of the damaged file into a new one and moves the damaged one into a broken-* folder.
// It can be interrupted at any point: finishRecovery continues at the next start.
func (s *Store) recover(ctx context.Context, reason error) error {
	s.log.Error("the datastore is damaged, recovering what can be read", "error", reason)
	dir := filepath.Dir(s.path)
	report := &Recovery{At: time.Now().UTC(), Reason: reason.Error()}
	if err := salvage(ctx, s.path, s.path+".recovered", report); err != nil {
		return fmt.Errorf("%w and cannot be recovered: the file is unchanged; restore a snapshot, or move state.db* "+
			"away to start empty (%w)", reason, err)
	}
	kept, err := keepDir(dir)
	if err != nil {
		return err
	}
	report.Kept = kept
	if err := writeReport(report); err != nil {
		return err
	}
	if err := finishRecovery(s.path, s.log); err != nil {
		return err
	}
	s.statusMu.Lock()
	s.recovery = report
	s.statusMu.Unlock()
	s.log.Error("the datastore was recovered", "rows", report.Rows, "lostRows", report.LostRows, "lost", report.Lost,
		"kept",
		report.Kept, "uncertain", report.Uncertain)
	return nil
}

// keepDir creates a new folder broken-TIME in dir.
func keepDir(dir string) (string, error) {
	for i := 0; ; i++ {
		name := filepath.Join(dir, "broken-"+time.Now().UTC().Format("20060102T150405Z"))
		if i > 0 {
			name += fmt.Sprintf("-%d", i)
		}
		err := os.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		return name, err
	}
}

func writeReport(report *Recovery) error {
	b, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(report.Kept, "report.json"), append(b, '\n'), 0o600)
}

// lastRecovery returns the newest report in dir that can be read, nil if there is none. The error names newer ones that
// cannot be read.
func lastRecovery(dir string) (*Recovery, error) {
	reports, err := listing.Match(dir, "broken-*", "report.json")
	if err != nil {
		return nil, err
	}
	slices.Sort(reports)
	var errs []error
	for _, p := range slices.Backward(reports) {
		var report Recovery
		b, err := os.ReadFile(p)
		if err == nil {
			err = json.Unmarshal(b, &report)
		}
		if err == nil {
			return &report, errors.Join(errs...)
		}
		errs = append(errs, fmt.Errorf("read report %s: %w", p, err))
	}
	return nil, errors.Join(errs...)
}

// finishRecovery replaces the damaged file with a complete recovered one, if there is one. It moves the damaged files
// into the newest broken-* folder: the write-ahead log first, so that it can never be applied to the new file.
func finishRecovery(path string, log *slog.Logger) error {
	recovered := path + ".recovered"
	if _, err := os.Stat(recovered); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	kept, err := listing.Match(dir, "broken-*")
	if err != nil {
		return err
	}
	if len(kept) == 0 { // interrupted before the folder was created: salvage again, which is cheap
		return os.Remove(recovered)
	}
	to := kept[len(kept)-1]
	for _, suffix := range []string{"-wal", ""} {
		_, err := os.Stat(filepath.Join(to, filepath.Base(path)+suffix))
		if err == nil { // the folder is that of an earlier recovery, or this file was moved before the interruption
			if _, err := os.Stat(path + suffix); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if to, err = keepDir(dir); err != nil {
				return err
			}
		}
		if err := os.Rename(path+suffix, filepath.Join(to, filepath.Base(path)+suffix)); err != nil &&
			!errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(atomicfile.SyncDir(to), atomicfile.SyncDir(dir)); err != nil {
		return err
	}
	if err := os.Rename(recovered, path); err != nil {
		return err
	}
	log.Warn("the recovered datastore file is in place", "kept", to)
	return atomicfile.SyncDir(dir)
}

// indexed is the part of a row that the index has.
type indexed struct {
	key   string
	flags int64
}

// salvage copies all readable rows with the right checksum from one file into a new one and fills in the report. It
// does not change the old file.
func salvage(ctx context.Context, from, to string, report *Recovery) (err error) {
	from, done, err := padded(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	db, err := sql.Open("sqlite", dsn(from, "query_only(1)", "cache_size(-4000)")+"&mode=ro")
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only read
	db.SetMaxOpenConns(1)

	index, indexErr := readIndex(ctx, db)
	meta := readMeta(ctx, db)
	top := max(meta[metaFloor], meta[metaCompact])
	for rev := range index {
		top = max(top, rev)
	}
	var maxRev sql.NullInt64
	if db.QueryRowContext(ctx, `SELECT rev FROM log NOT INDEXED ORDER BY rev DESC LIMIT 1`).Scan(&maxRev) == nil {
		top = max(top, maxRev.Int64)
	}

	saved := map[int64]bool{}
	newest := map[string]int64{} // newest revision of each key in the index
	for rev, e := range index {
		newest[e.key] = max(newest[e.key], rev)
	}
	var revs []int64 // revisions that have rows; nil if the index is damaged
	if indexErr == nil {
		revs = slices.Sorted(maps.Keys(index))
	}
	return create(ctx, to, func(c *sql.Conn) error {
		put, err := c.PrepareContext(ctx, insertRow)
		if err != nil {
			return err
		}
		defer put.Close() //nolint:errcheck // Exec has the error
		insert := func(r *row) error {
			_, err := put.ExecContext(ctx, r.rev, r.key, r.create, r.prev, r.version, r.lease, r.flags, r.sum, r.value)
			return err
		}
		highest, err := salvageRows(ctx, db, top, revs, func(r *row) error {
			if r.verify() != nil || saved[r.rev] {
				return nil
			}
			saved[r.rev] = true
			report.Rows++
			return insert(r)
		})
		if err != nil {
			return err
		}
		if report.Rows == 0 {
			return errors.New("no row could be read")
		}
		top = max(top, highest)
		for rev, e := range index {
			if saved[rev] {
				continue
			}
			report.LostRows++
			if e.flags&deleted != 0 { // the index has all that matters of a tombstone
				r := &row{rev: rev, key: []byte(e.key), create: rev, flags: e.flags}
				r.sum = r.checksum()
				if err := insert(r); err != nil {
					return err
				}
				report.LostRows--
			} else if newest[e.key] == rev && len(report.Lost) < maxNamed {
				report.Lost = append(report.Lost, fmt.Sprintf("%s (revision %d)", e.key, rev))
			}
		}
		slices.Sort(report.Lost)
		if indexErr != nil {
			report.Uncertain = "the index of keys is damaged too, so more may be lost than is named here: " +
				indexErr.Error()
		}
		epoch := meta[metaEpoch]
		if epoch == 0 {
			epoch = epochGuess
		}
		floor := top + revisionJump
		_, err = c.ExecContext(ctx, `UPDATE meta SET value = CASE name
			WHEN 'floor' THEN ? WHEN 'compact' THEN ? WHEN 'epoch' THEN ? ELSE 0 END`, floor, floor, epoch)
		return err
	})
}

// readMeta returns the readable part of the table meta.
func readMeta(ctx context.Context, db *sql.DB) map[string]int64 {
	meta := map[string]int64{}
	rows, err := db.QueryContext(ctx, `SELECT name, value FROM meta`)
	if err != nil {
		return meta
	}
	defer rows.Close() //nolint:errcheck // what was read counts
	for rows.Next() {
		var name string
		var v int64
		if rows.Scan(&name, &v) == nil {
			meta[name] = v
		}
	}
	return meta
}

// padded returns a file that has the length stated in the header, since SQLite refuses to read a shorter one: the file
// itself if it is long enough, else a copy with zeros appended, which done removes.
func padded(path string) (_ string, done func() error, err error) {
	h, err := readHeader(path)
	if err != nil {
		return "", nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", nil, err
	}
	want := int64(h.pages) * int64(h.pageSize)
	if st.Size() >= want {
		return path, func() error { return nil }, nil
	}
	tmp := path + ".padded"
	done = func() error {
		var errs []error
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(tmp + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	if err := done(); err != nil { // an interrupted attempt leaves files
		return "", nil, err
	}
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(path+suffix, tmp+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", nil, errors.Join(err, done())
		}
	}
	if err := os.Truncate(tmp, want); err != nil {
		return "", nil, errors.Join(err, done())
	}
	return tmp, done, nil
}

// readIndex reads the index by revision, from both ends, so that one bad page in the middle hides few rows.
func readIndex(ctx context.Context, db *sql.DB) (map[int64]indexed, error) {
	out := map[int64]indexed{}
	var errs []error
	for _, order := range []string{"key, rev", "key DESC, rev DESC"} {
		err := func() error {
			rows, err := db.QueryContext(ctx, `SELECT key, rev, flags FROM log INDEXED BY log_key ORDER BY `+order)
			if err != nil {
				return err
			}
			defer rows.Close() //nolint:errcheck // Err has the error
			for rows.Next() {
				var key []byte
				var rev, flags int64
				if err := rows.Scan(&key, &rev, &flags); err != nil {
					return err
				}
				out[rev] = indexed{string(key), flags}
			}
			return rows.Err()
		}()
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
	}
	return out, errs[0]
}

// salvageRows visits every readable row and returns the highest revision. It reads in order; at damage, it continues
// one revision at a time: those in revs, or, if revs is nil, all, since revisions are dense except after a recovery
// or a restore.
func salvageRows(ctx context.Context, db *sql.DB, top int64, revs []int64, visit func(*row) error) (highest int64,
	err error) {
	var visitErr error
	span := func(where string, args ...any) (last int64, n int, err error) {
		rows, err := db.QueryContext(ctx, `SELECT `+columns+`, l.sum, l.value FROM log l NOT INDEXED WHERE `+where,
			args...)
		if err != nil {
			return 0, 0, err
		}
		defer rows.Close() //nolint:errcheck // Err has the error
		for rows.Next() && visitErr == nil {
			var r row
			if rows.Scan(&r.rev, &r.key, &r.create, &r.prev, &r.version, &r.lease, &r.flags, &r.sum, &r.value) == nil {
				visitErr = visit(&r)
			}
			last = r.rev
			n++
		}
		return last, n, rows.Err()
	}
	const piece = 200
	at, failed := int64(0), 0
	for visitErr == nil && ctx.Err() == nil {
		last, n, err := span(`l.rev > ? ORDER BY l.rev LIMIT ?`, at, piece)
		at = max(at, last)
		highest = max(highest, last)
		if err == nil {
			if n < piece {
				break
			}
			failed = 0
			continue
		}
		if at >= top || failed > 1<<20 {
			break
		}
		for i := 0; i < 64 && at < top && visitErr == nil; i++ { // past the damage
			at++
			if j, _ := slices.BinarySearch(revs, at); j < len(revs) {
				at = revs[j]
			}
			failed++
			if last, n, err := span(`l.rev = ?`, at); err == nil && n > 0 {
				highest, failed = max(highest, last), 0
			}
		}
	}
	return highest, errors.Join(visitErr, ctx.Err())
}
