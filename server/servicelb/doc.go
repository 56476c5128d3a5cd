// Package servicelb gives Services of type LoadBalancer addresses where there is no cloud: those of the
// cluster's nodes, or addresses of a pool. It writes them into the Services' status, and the service proxy
// of every node serves them there; nothing else runs.
//
// plan.go decides, as a pure function of Nodes and Services, who gets what. The controller watches Nodes and
// Services of type LoadBalancer, and the endpoints only of those whose external traffic policy is Local;
// while nothing changes it does nothing. What a host holds itself, its agent says on the Node (package
// agent/dataplane/proxy), so that the port is left to the host and the Service's status tells why.
//
// server's assembly calls it. It imports client-go and nothing of Kubernetes' server side.
package servicelb
