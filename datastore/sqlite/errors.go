package sqlite

import (
	"errors"
	"fmt"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Errors that Open wraps.
var (
	ErrLocked   = errors.New("in use by another process")
	ErrNewer    = errors.New("written by a newer version")
	ErrForeign  = errors.New("not a datastore of this program")
	ErrReadOnly = errors.New("read-only")
	ErrFull     = errors.New("no space left on the device")
	ErrDamaged  = errors.New("damaged")
)

// classify wraps an error of SQLite or the system with the Err variable that fits, if one does.
func classify(err error) error {
	if err == nil {
		return nil
	}
	var e *driver.Error
	if errors.As(err, &e) {
		if e.Code() == lib.SQLITE_IOERR_SHMSIZE {
			return fmt.Errorf("%w (%w)", ErrFull, err)
		}
		switch e.Code() & 0xff {
		case lib.SQLITE_FULL:
			return fmt.Errorf("%w (%w)", ErrFull, err)
		case lib.SQLITE_READONLY:
			return fmt.Errorf("%w (%w)", ErrReadOnly, err)
		case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
			return fmt.Errorf("%w (%w)", ErrDamaged, err)
		}
	}
	switch {
	case atomicfile.NoSpace(err):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w file system (%w)", ErrReadOnly, err)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w for this user (%w)", ErrReadOnly, err)
	}
	return err
}

// forClient turns an error into the gRPC status for an etcd client. It must not look like a conflict or a missing key,
// which a client would act on.
func forClient(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	err = classify(err)
	switch {
	case errors.Is(err, ErrFull):
		code = codes.ResourceExhausted
	case errors.Is(err, ErrDamaged):
		code = codes.DataLoss
	}
	return status.Errorf(code, "datastore: %v", err)
}
