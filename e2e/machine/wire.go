package machine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a cable between a machine and the LAN that is long and not quite tight: what the machine sends arrives
// later, or not. The kernel of the tests' machines has no netem, so frames go through this process, from the TAP
// device that is the machine's card to the one that is the LAN's port and back.
type wire struct {
	ends [2]*os.File
	wg   sync.WaitGroup
}

// newWire makes both devices, down.
func newWire(lan, machine int, port, card string, delay time.Duration, loss float64) (*wire, error) {
	w := &wire{}
	var err error
	if w.ends[0], err = tap(machine, card); err == nil {
		w.ends[1], err = tap(lan, port)
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	w.wg.Add(2)
	go w.carry(w.ends[0], w.ends[1], delay, loss)
	go w.carry(w.ends[1], w.ends[0], 0, 0)
	return w, nil
}

// tap makes a TAP device in the network namespace of a process. The device lives as long as the file is open.
func tap(pid int, name string) (*os.File, error) {
	var out *os.File
	err := enter(pid, []space{netSpace}, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make device %s: %w", name, err), unix.Close(fd))
		}
		out = os.NewFile(uintptr(fd), name)
		return nil
	})
	return out, err
}

// frame is one on its way.
type frame struct {
	due  time.Time
	data []byte
}

// carry moves frames in one direction until a device is closed.
func (w *wire) carry(from, to *os.File, delay time.Duration, loss float64) {
	defer w.wg.Done()
	queue := make(chan frame, 1000) // what does not fit is lost, as on a real one
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		for f := range queue {
			if d := time.Until(f.due); d > 0 {
				time.Sleep(d) // that is what a long cable does
			}
			_, _ = to.Write(f.data) // the other end is down or gone
		}
	}()
	defer close(queue)
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if loss > 0 && rand.Float64() < loss {
			continue
		}
		select {
		case queue <- frame{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
}

// close takes both devices away.
func (w *wire) close() error {
	var errs []error
	for _, f := range w.ends {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	w.wg.Wait()
	return errors.Join(errs...)
}
