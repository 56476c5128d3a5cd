package version

import (
	"fmt"
	"regexp"
	"strconv"
)

var minor = regexp.MustCompile(`^v1\.(\d{1,4})\.\d{1,4}(-[a-z0-9.-]+)?(\+[a-z0-9.-]+)?$`)

// Minor returns the minor version: 37 for v1.37.2+umiak1.
func Minor(version string) (int, error) {
	m := minor.FindStringSubmatch(version)
	if m == nil {
		return 0, fmt.Errorf("%q is no version such as v1.37.2+umiak1", version)
	}
	return strconv.Atoi(m[1])
}

// maxNodeSkew is the number of minor versions that a node may be behind its servers, see
// https://kubernetes.io/releases/version-skew-policy/#kubelet.
const maxNodeSkew = 3

// NodeFits returns why a node of a version cannot work with a server of another: a kubelet must not be newer than the
// API server, nor more than maxNodeSkew minor versions older. It returns nil for a version that it cannot parse.
func NodeFits(node, server string) error {
	n, s, ok := minors(node, server)
	switch {
	case !ok:
		return nil
	case n > s:
		return fmt.Errorf("this machine has umiak %s and the server %s: a node must not be newer than its servers; "+
			"install umiak v1.%d here, or upgrade the servers first", node, server, s)
	case n < s-maxNodeSkew:
		return fmt.Errorf("this machine has umiak %s and the server %s: a node must not be more than %d minor "+
			"versions older than its servers; install umiak v1.%d here", node, server, maxNodeSkew, s)
	}
	return nil
}

// ServerFits returns why a server of a version cannot join a server of another: API servers of a cluster may be one
// minor version apart, see https://kubernetes.io/releases/version-skew-policy/#kube-apiserver. It returns nil for a
// version that it cannot parse.
func ServerFits(joining, server string) error {
	j, s, ok := minors(joining, server)
	if ok && (j > s+1 || j < s-1) {
		return fmt.Errorf("this machine has umiak %s and the server %s: servers of a cluster may be one minor "+
			"version apart; install umiak v1.%d here", joining, server, s)
	}
	return nil
}

func minors(a, b string) (x, y int, ok bool) {
	x, errX := Minor(a)
	y, errY := Minor(b)
	return x, y, errX == nil && errY == nil
}

var etcd = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})\.`)

// EtcdFits returns why an etcd of a version cannot become a member beside one of another: it must not be older, which
// the cluster would refuse, nor more than one minor version newer. It returns nil for a version that it cannot parse.
func EtcdFits(joining, member string) error {
	j, m := etcd.FindStringSubmatch(joining), etcd.FindStringSubmatch(member)
	if j == nil || m == nil {
		return nil
	}
	a, _ := strconv.Atoi(j[2]) // digits
	b, _ := strconv.Atoi(m[2])
	if j[1] != m[1] || a < b || a > b+1 {
		return fmt.Errorf("this machine's umiak has etcd %s and the cluster's %s: they have to be the same minor "+
			"version, or this one the next; install the cluster's umiak here", joining, member)
	}
	return nil
}
