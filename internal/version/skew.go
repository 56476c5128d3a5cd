package version

import (
	"fmt"
	"regexp"
	"strconv"
)

var minor = regexp.MustCompile(`^v1\.(\d{1,4})\.\d{1,4}(-[a-z0-9.-]+)?(\+[a-z0-9.-]+)?$`)

// Minor is the 37 of v1.37.2+umiak1.
func Minor(version string) (int, error) {
	m := minor.FindStringSubmatch(version)
	if m == nil {
		return 0, fmt.Errorf("%q is no version such as v1.37.2+umiak1", version)
	}
	return strconv.Atoi(m[1])
}

// oldest is how many minor versions a node may be behind its servers.
// https://kubernetes.io/releases/version-skew-policy/#kubelet
const oldest = 3

// NodeFits says why a node of a version cannot work with a server of another: a kubelet must not be newer than the API
// server, nor more than three minor versions older. A version that is not known fits.
func NodeFits(node, server string) error {
	n, s, ok := minors(node, server)
	switch {
	case !ok:
		return nil
	case n > s:
		return fmt.Errorf("this machine has umiak %s and the server %s: a node must not be newer than its servers; install umiak v1.%d here, or upgrade the servers first", node, server, s)
	case n < s-oldest:
		return fmt.Errorf("this machine has umiak %s and the server %s: a node must not be more than %d minor versions older than its servers; install umiak v1.%d here", node, server, oldest, s)
	}
	return nil
}

// ServerFits says why a server of a version cannot be one more beside a server of another: API servers of a cluster may
// be one minor version apart. A version that is not known fits.
// https://kubernetes.io/releases/version-skew-policy/#kube-apiserver
func ServerFits(joining, server string) error {
	j, s, ok := minors(joining, server)
	if ok && (j > s+1 || j < s-1) {
		return fmt.Errorf("this machine has umiak %s and the server %s: servers of a cluster may be one minor version apart; install umiak v1.%d here", joining, server, s)
	}
	return nil
}

func minors(a, b string) (x, y int, ok bool) {
	x, errX := Minor(a)
	y, errY := Minor(b)
	return x, y, errX == nil && errY == nil
}

var etcd = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})\.`)

// EtcdFits says why an etcd of a version cannot become a member beside one of another: not an older one, which the
// cluster would refuse, and not one that is more than one minor version newer. A version that is not known fits.
func EtcdFits(joining, member string) error {
	j, m := etcd.FindStringSubmatch(joining), etcd.FindStringSubmatch(member)
	if j == nil || m == nil {
		return nil
	}
	a, _ := strconv.Atoi(j[2]) // digits
	b, _ := strconv.Atoi(m[2])
	if j[1] != m[1] || a < b || a > b+1 {
		return fmt.Errorf("this machine's umiak has etcd %s and the cluster's %s: they have to be the same minor version, or this one the next; install the cluster's umiak here", joining, member)
	}
	return nil
}
