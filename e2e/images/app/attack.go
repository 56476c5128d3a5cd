package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// forge sends a datagram with a source that need not be the pod's.
func forge(_ context.Context, args []string, _ io.Writer) error {
	if len(args) != 2 {
		return errors.New("forge takes a source and an address with a port")
	}
	src, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	dst, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	// UDP; in IPv4 it may go without a checksum
	body := slices.Concat([]byte{0x30, 0x39}, binary.BigEndian.AppendUint16(nil, dst.Port()),
		[]byte{0, 10, 0, 0, 'h', 'i'})
	family, packet := unix.AF_INET, slices.Concat([]byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64,
		unix.IPPROTO_UDP, 0, 0}, src.AsSlice(), dst.Addr().AsSlice(), body)
	var to unix.Sockaddr
	if src.Is4() {
		to = &unix.SockaddrInet4{Addr: dst.Addr().As4()}
	} else {
		sum := uint32(0)
		all := slices.Concat(src.AsSlice(), dst.Addr().AsSlice(),
			[]byte{0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_UDP}, body)
		for i := 0; i < len(all); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(all[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(body[6:], ^uint16(sum)) //nolint:gosec // it has been folded
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.Addr().As16()}
		packet = slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_UDP, 64}, src.AsSlice(),
			dst.Addr().AsSlice(), body)
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // it has been sent
	return unix.Sendto(fd, packet, 0, to)
}

// flood asks a name server as fast as it can for some seconds, waiting for no answer, and holds as many connections
// to it as it gets.
func flood(ctx context.Context, args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("flood takes an address with a port, and seconds")
	}
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	var held []net.Conn
	go func() {
		d := net.Dialer{Timeout: time.Second}
		for ctx.Err() == nil && len(held) < 5000 {
			if c, err := d.DialContext(ctx, "tcp", args[0]); err == nil {
				held = append(held, c)
			}
		}
	}()
	query := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01")
	sent, d := 0, net.Dialer{}
	for ctx.Err() == nil {
		c, err := d.DialContext(ctx, "udp", args[0]) // a new port each time, so that each is a connection to conntrack
		if err != nil {
			continue
		}
		for range 50 {
			if _, err := c.Write(query); err == nil {
				sent++
			}
		}
		_ = c.Close()
	}
	_, err = fmt.Fprintf(out, "%d\n", sent)
	return err
}
