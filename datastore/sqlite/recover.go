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
	// revisionJump is added to the newest revision known when a file has lost some: whatever clients have
	// seen is then older than what they see next, and they list anew.
	revisionJump = 1_000_000
	// epochGuess is taken for the number of starts when it cannot be read.
	epochGuess = 1 << 15
	maxNamed   = 100 // lost keys named in a report
)

// Recovery tells what was found damaged and what became of it.
type Recovery struct {
	At        time.Time `json:"at"`
	Reason    string    `json:"reason"`
	Kept      string    `json:"kept"` // folder with the damaged files
	Rows      int64     `json:"rows"` // revisions carried over
	LostRows  int64     `json:"lostRows"`
	Lost      []string  `json:"lost,omitempty"` // keys whose newest revision is lost, the first hundred
	Uncertain string    `json:"uncertain,omitempty"`
}

// recover carries what can be read of the damaged file over into a new one and keeps the damaged one.
// The steps can be broken off anywhere: finishRecovery goes on with them at the next start.
func (s *Store) recover(ctx context.Context, reason error) error {
	s.log.Error("the datastore is damaged, recovering what can be read", "error", reason)
	dir := filepath.Dir(s.path)
	rep := &Recovery{At: time.Now().UTC(), Reason: reason.Error()}
	if err := salvage(ctx, s.path, s.path+".recovered", rep); err != nil {
		return fmt.Errorf("%w and cannot be recovered: it was left as it is; restore a snapshot, or move state.db* away to start empty (%w)", reason, err)
	}
	kept, err := keepDir(dir)
	if err != nil {
		return err
	}
	rep.Kept = kept
	if err := writeReport(rep); err != nil {
		return err
	}
	if err := finishRecovery(s.path, s.log); err != nil {
		return err
	}
	s.statusMu.Lock()
	s.recovery = rep
	s.statusMu.Unlock()
	s.log.Error("the datastore was recovered", "rows", rep.Rows, "lostRows", rep.LostRows, "lost", rep.Lost, "kept", rep.Kept, "uncertain", rep.Uncertain)
	return nil
}

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

func writeReport(rep *Recovery) error {
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(rep.Kept, "report.json"), append(b, '\n'), 0o600)
}

// lastRecovery returns the newest report that is still there.
func lastRecovery(dir string) *Recovery {
	reports, _ := listing.Match(dir, "broken-*", "report.json")
	slices.Sort(reports)
	for _, p := range slices.Backward(reports) {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		var rep Recovery
		if json.Unmarshal(b, &rep) == nil {
			return &rep
		}
	}
	return nil
}

// finishRecovery puts a complete recovered file in the place of the damaged one, whose parts go into the
// newest broken-* folder: the write-ahead log first, so that it can never be applied to the new file.
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
	if len(kept) == 0 { // stopped before the folder was made: salvage again, it is cheap
		return os.Remove(recovered)
	}
	to := kept[len(kept)-1]
	for _, suffix := range []string{"-wal", ""} {
		_, err := os.Stat(filepath.Join(to, filepath.Base(path)+suffix))
		if err == nil { // a folder of an earlier recovery, or this part was moved before the stop
			if _, err := os.Stat(path + suffix); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if to, err = keepDir(dir); err != nil {
				return err
			}
		}
		if err := os.Rename(path+suffix, filepath.Join(to, filepath.Base(path)+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
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

// indexed is what the index knows of a row.
type indexed struct {
	key   string
	flags int64
}

// salvage reads all rows that can be read and that have the right checksum out of one file and writes them
// into a new one. It changes nothing in the old one.
func salvage(ctx context.Context, from, to string, rep *Recovery) (err error) {
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
	meta := map[string]int64{}
	if rows, err := db.QueryContext(ctx, `SELECT name, value FROM meta`); err == nil {
		for rows.Next() {
			var name string
			var v int64
			if rows.Scan(&name, &v) == nil {
				meta[name] = v
			}
		}
		_ = rows.Close()
	}
	top := max(meta[metaFloor], meta[metaCompact])
	for rev := range index {
		top = max(top, rev)
	}
	var maxRev sql.NullInt64
	if db.QueryRowContext(ctx, `SELECT rev FROM log NOT INDEXED ORDER BY rev DESC LIMIT 1`).Scan(&maxRev) == nil {
		top = max(top, maxRev.Int64)
	}

	saved := map[int64]bool{}
	newest := map[string]int64{} // newest revision of each key that the index knows
	for rev, e := range index {
		newest[e.key] = max(newest[e.key], rev)
	}
	var revs []int64 // where there are rows; nil if that cannot be told
	if indexErr == nil {
		revs = slices.Sorted(maps.Keys(index))
	}
	return create(ctx, to, func(c *sql.Conn) error {
		put, err := c.PrepareContext(ctx, `INSERT INTO log (rev, key, create_rev, prev_rev, version, lease, flags, sum, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`)
		if err != nil {
			return err
		}
		defer put.Close() //nolint:errcheck // its Exec says what went wrong
		insert := func(r *row) error {
			_, err := put.ExecContext(ctx, r.rev, r.key, r.create, r.prev, r.version, r.lease, r.flags, r.sum, r.value)
			return err
		}
		highest, err := salvageRows(ctx, db, top, revs, func(r *row) error {
			if r.verify() != nil || saved[r.rev] {
				return nil
			}
			saved[r.rev] = true
			rep.Rows++
			return insert(r)
		})
		if err != nil {
			return err
		}
		if rep.Rows == 0 {
			return errors.New("no row could be read")
		}
		top = max(top, highest)
		for rev, e := range index {
			if saved[rev] {
				continue
			}
			rep.LostRows++
			if e.flags&deleted != 0 { // all that matters of a tombstone is in the index
				r := &row{rev: rev, key: []byte(e.key), create: rev, flags: e.flags}
				r.sum = r.checksum()
				if err := insert(r); err != nil {
					return err
				}
				rep.LostRows--
			} else if newest[e.key] == rev && len(rep.Lost) < maxNamed {
				rep.Lost = append(rep.Lost, fmt.Sprintf("%s (revision %d)", e.key, rev))
			}
		}
		slices.Sort(rep.Lost)
		if indexErr != nil {
			rep.Uncertain = "the index of keys is damaged too, so more may be lost than is named here: " + indexErr.Error()
		}
		epoch := meta[metaEpoch]
		if epoch == 0 {
			epoch = epochGuess
		}
		floor := top + revisionJump
		_, err = c.ExecContext(ctx, `UPDATE meta SET value = CASE name WHEN 'floor' THEN ? WHEN 'compact' THEN ? WHEN 'epoch' THEN ? ELSE 0 END`, floor, floor, epoch)
		return err
	})
}

// padded returns a file of the length that the header promises: SQLite reads nothing at all of a shorter
// one. That is a copy with zeros behind it, removed by done, or the file itself if it is long enough.
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
	if err := done(); err != nil { // of an attempt that was broken off
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

// readIndex reads the index from both ends, so that one bad page in the middle hides little.
func readIndex(ctx context.Context, db *sql.DB) (map[int64]indexed, error) {
	out := map[int64]indexed{}
	var errs []error
	for _, order := range []string{"key, rev", "key DESC, rev DESC"} {
		err := func() error {
			rows, err := db.QueryContext(ctx, `SELECT key, rev, flags FROM log INDEXED BY log_key ORDER BY `+order)
			if err != nil {
				return err
			}
			defer rows.Close() //nolint:errcheck // Err says what went wrong
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

// salvageRows visits every row that can be read: in order as far as that goes, then around the damage one
// revision at a time: the known ones, or all, since revisions are nearly dense but for the leaps after a
// recovery or a restore.
func salvageRows(ctx context.Context, db *sql.DB, top int64, revs []int64, visit func(*row) error) (highest int64, err error) {
	var visitErr error
	span := func(where string, args ...any) (last int64, n int, err error) {
		rows, err := db.QueryContext(ctx, `SELECT `+columns+`, l.sum, l.value FROM log l NOT INDEXED WHERE `+where, args...)
		if err != nil {
			return 0, 0, err
		}
		defer rows.Close() //nolint:errcheck // Err says what went wrong
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
