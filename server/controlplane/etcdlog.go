package controlplane

import (
	_ "unsafe" // for go:linkname

	"go.uber.org/zap"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory" // has the variable below
)

// etcdClientLogger is where all of kube-apiserver's etcd clients log. Upstream makes it at the start of the process,
// for stderr, past every other logger and without a limit: without a quorum it was nine of ten lines.
//
//go:linkname etcdClientLogger k8s.io/apiserver/pkg/storage/storagebackend/factory.etcd3ClientLogger
var etcdClientLogger *zap.Logger

// silenceEtcdClients drops what the clients log: that a request is tried again. One that fails is an error, which the
// API server reports itself.
func silenceEtcdClients() { etcdClientLogger = zap.NewNop() }
