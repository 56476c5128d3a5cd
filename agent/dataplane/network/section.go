package network

import (
	"fmt"

	"github.com/umiak-io/umiak/internal/status"
)

// Rows returns what a person should know about the network, for the node's section of `umiak status`: pods whose source
// addresses are not checked, and what the closed ports have refused.
func (n *Network) Rows() (rows []status.Row) {
	if r := n.sources.Load(); r != nil && *r != "" {
		rows = append(rows, status.Row{Name: "pods' sources", Detail: *r})
	}
	closed := n.closed.Load()
	if closed == nil {
		return rows
	}
	refused, err := closed.Counts()
	if err != nil {
		return append(rows, status.Row{Name: "ports", State: "unknown", Detail: err.Error()})
	}
	if refused.Kubelet > 0 {
		rows = append(rows, status.Row{Name: "kubelet's port", State: "closed",
			Detail: fmt.Sprintf("%d connections from outside the cluster were refused; kubelet-port-from lets ranges in", refused.Kubelet)})
	}
	if refused.VXLAN > 0 {
		rows = append(rows, status.Row{Name: "vxlan", State: "closed",
			Detail: fmt.Sprintf("%d packets from addresses of no node were dropped", refused.VXLAN)})
	}
	return rows
}
