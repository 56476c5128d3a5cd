// Package leader runs on one of several servers the parts that may run only once: controllers, the scheduler, the load
// balancer.
//
// Upstream's controller manager and scheduler can elect themselves, with a lease each, written every two seconds,
// and end the process when they lose it: a slow disk would restart a whole server, and a stop of the server would
// break off everything else (os.Exit in kube-scheduler's OnStoppedLeading). Here they share one lease, and only they end
// with it; servers that do not lead hold no caches for them.
//
// server calls it. It imports client-go and nothing of Kubernetes' server side.
package leader
